"""Decoder and encoder against the plain float64 reference, with and without each option."""

import copy
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model import DecoderLM, EncoderLM
from model.attention import SelfAttention
from model.config import ModelConfig
from model.kv_cache import KeyValueCache
from model.rotary import rotate, rotation_table
from tests.support import reference_decoder
from tests.support.comparing import (
    ALL_OPTIONS,
    EACH_AND_ALL,
    CapturedDropout,
    Dropped,
    assert_same_gradients,
    gradients,
    named,
    part_shape,
)
from tests.support.reference_decoder import keep_all
from tests.support.reference_encoder import encoder_logits

V, D, H, P, L = 23, 8, 2, 9, 2
Model = DecoderLM | EncoderLM


class Case(NamedTuple):
    """A model and the options that it has and GPT-2 has not."""

    kind: type[DecoderLM] | type[EncoderLM]
    options: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.kind.__name__}-{named(self.options) or 'gpt2'}"


DECODER, ENCODER = Case(DecoderLM, {}), Case(EncoderLM, {})
ROPE = Case(DecoderLM, {"positions": "rope"})
CASES = [DECODER, ENCODER, *(Case(DecoderLM, options) for options in EACH_AND_ALL)]
plain_cases = pytest.mark.parametrize("case", [DECODER, ENCODER], ids=str)
all_cases = pytest.mark.parametrize("case", CASES, ids=str)
decoders = pytest.mark.parametrize("case", [c for c in CASES if c.kind is DecoderLM], ids=str)
with_and_without_mask = pytest.mark.parametrize("masked", [False, True])


def make(case: Case = DECODER, seed: int = 0, p_dropout: float = 0.0) -> Model:
    """A float64 model whose parameters and head bias are all far from their initial values."""
    torch.manual_seed(seed)
    sizes = {"n_vocab": V, "n_embd": D, "n_head": H, "n_positions": P, "n_layer": L}
    shape = ModelConfig(**sizes, p_dropout=p_dropout, **case.options)
    model = case.kind.from_config(shape).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    if model.head_bias is not None:
        model.head_bias.normal_()
    return model


def expected_logits(
    model: Model, ids: Tensor, drop: Callable[[str, Tensor], Tensor] = keep_all
) -> Tensor:
    """Of one sequence without padding."""
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    if isinstance(model, EncoderLM):
        return encoder_logits(tensors, ids, H, L, drop)
    options = model.shape.options()
    return reference_decoder.logits_of_prompt(tensors, ids, H, L, drop, options)


def assert_close(case: Case, ours: Tensor, expected: Tensor) -> None:
    rtol, atol = (1e-10, 1e-11) if case.options else (1e-11, 1e-12)
    torch.testing.assert_close(ours, expected, rtol=rtol, atol=atol)


@all_cases
def test_logits_and_all_gradients_equal_the_reference(case: Case) -> None:
    model = make(case)
    assert model.shape.options() == case.options
    ids = torch.randint(V, (2, P))
    logits = model(ids)
    expected = torch.stack([expected_logits(model, row) for row in ids])
    assert_close(case, logits, expected)
    # ... and the option does something, where it is not about what a model begins with.
    if case.options.keys() - {"zero_init", "bias"}:
        plain = DecoderLM.from_config(ModelConfig(**model.shape.sizes())).double()
        plain.load_state_dict(model.state_dict(), strict=False)
        assert not torch.allclose(plain(ids), logits, atol=1e-3)

    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    expected_loss = torch.stack(
        [reference_decoder.next_token_loss(a, row) for a, row in zip(expected, ids, strict=True)]
    ).mean()
    torch.testing.assert_close(loss, expected_loss)
    assert_same_gradients(gradients(loss, model), gradients(expected_loss, model))


@settings(max_examples=80, deadline=None)
@given(
    case=st.sampled_from([*CASES, ENCODER]),
    mask=st.lists(st.integers(0, 1), min_size=1, max_size=P).filter(any),
    seed=st.integers(0, 2**16),
)
def test_padding_anywhere_changes_nothing(case: Case, mask: list[int], seed: int) -> None:
    """Logits of the content equal those of the content alone, in the reference and in our model."""
    model = make(case, seed)
    ids = torch.randint(V, (1, len(mask)))
    content = torch.tensor(mask).bool()
    ours = model(ids, torch.tensor([mask], dtype=torch.float32))[0, content]
    alone = ids[0, content]
    assert_close(case, ours, expected_logits(model, alone))
    assert_close(case, ours, model(alone[None])[0])


@pytest.mark.parametrize("case", [DECODER, ENCODER, CASES[-1]], ids=str)
def test_gradients_with_padding_equal_those_of_the_sequences_alone(case: Case) -> None:
    model = make(case)
    ids = torch.randint(V, (4, 6))
    mask = torch.tensor(
        [[0, 0, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0], [0, 1, 0, 1, 1, 0], [0, 0, 0, 0, 0, 0]]
    )
    direction = torch.randn(4, 6, V, dtype=torch.float64)
    ours = (model(ids, mask) * direction)[mask.bool()].sum()
    expected = torch.zeros((), dtype=torch.float64)
    for b, content in enumerate(mask[:3].bool()):
        alone = expected_logits(model, ids[b, content])
        expected = expected + (alone * direction[b, content]).sum()
    assert_same_gradients(gradients(ours, model), gradients(expected, model))


@all_cases
def test_nothing_but_padding_is_finite(case: Case) -> None:
    model = make(case)
    logits = model(torch.randint(V, (1, 5)), torch.zeros(1, 5))
    assert logits.isfinite().all()
    assert all(g.isfinite().all() for g in gradients(logits.sum(), model).values())


@with_and_without_mask
@decoders
def test_the_future_changes_nothing_before_it(case: Case, masked: bool) -> None:
    model = make(case)
    ids = torch.randint(V, (2, P))
    mask = torch.ones(2, P) if masked else None
    before = model(ids, mask)
    for t in range(1, P):
        changed = ids.clone()
        changed[:, t:] = (changed[:, t:] + 1 + torch.randint(V - 1, (2, P - t))) % V
        after = model(changed, mask)
        assert torch.equal(after[:, :t], before[:, :t])
        assert not torch.equal(after[:, t], before[:, t])


@pytest.mark.parametrize(
    ("mask", "positions"),
    [
        ([1, 1, 1, 1, 1], [0, 1, 2, 3, 4]),
        ([0, 0, 1, 1, 1], [0, 0, 0, 1, 2]),
        ([0, 1, 0, 1, 1], [0, 0, 0, 1, 2]),
        ([1, 1, 0, 0, 1], [0, 1, 1, 1, 2]),
        ([0, 0, 0, 0, 0], [0, 0, 0, 0, 0]),
    ],
)
def test_position_ids_count_content_only(mask: list[int], positions: list[int]) -> None:
    model = make()
    ids = torch.randint(V, (1, 5))
    expected = model.token_embeddings(ids) + model.position_embeddings(torch.tensor([positions]))
    for dtype in (torch.float32, torch.int64, torch.bool):
        assert torch.equal(model.embed(ids, torch.tensor([mask], dtype=dtype)), expected)
    if all(mask):
        assert torch.equal(model.embed(ids), expected)


@plain_cases
def test_dropout_is_where_gpt2_has_it(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the masks that the model drew, the reference gives the same logits and gradients."""
    model = make(case, p_dropout=0.4)
    ids = torch.randint(V, (2, P))
    dropout = CapturedDropout()
    monkeypatch.setattr(F, "dropout", dropout)
    logits = model(ids, torch.ones(2, P))  # with a mask, attention is written out
    monkeypatch.undo()

    rows = []
    for b in range(2):
        masks = iter(dropout.masks)
        places = {"embedding": next(masks)[b]}
        for i in range(L):
            weights = next(masks)[b]
            for head in range(H):
                for t in range(P):
                    seen = t + 1 if case is DECODER else P
                    places[f"blocks.{i}.mha.weights.{head}.{t}"] = weights[head, t, :seen]
            places[f"blocks.{i}.mha.output"] = next(masks)[b]
            places[f"blocks.{i}.ff.output"] = next(masks)[b]
        assert next(masks, None) is None
        drop = Dropped(places)
        rows.append(expected_logits(model, ids[b], drop))
        assert not drop.unused
    expected = torch.stack(rows)
    torch.testing.assert_close(logits, expected, rtol=1e-11, atol=1e-12)
    direction = torch.randn_like(logits)
    assert_same_gradients(
        gradients((logits * direction).sum(), model),
        gradients((expected * direction).sum(), model),
    )


@plain_cases
def test_no_dropout_in_evaluation_or_at_zero(case: Case) -> None:
    ids = torch.randint(V, (2, P))
    with_dropout, without = make(case, p_dropout=0.5), make(case)
    assert not torch.equal(with_dropout(ids), with_dropout(ids))
    assert torch.equal(with_dropout.eval()(ids), without(ids))


def test_initial_weights() -> None:
    torch.manual_seed(0)
    n_layer = 6
    model = DecoderLM(2000, 64, 4, 128, n_layer)
    for name, parameter in model.named_parameters():
        if name.endswith(".bias"):
            assert torch.equal(parameter, torch.zeros_like(parameter)), name
        elif ".ln_" in name or name.startswith("ln."):
            assert torch.equal(parameter, torch.ones_like(parameter)), name
        else:
            residual = "mha.proj" in name or "linear_out" in name
            std = 0.02 / math.sqrt(2 * n_layer) if residual else 0.02
            n = parameter.numel()
            assert abs(parameter.std() / std - 1) < 5 / math.sqrt(2 * n), name
            assert abs(parameter.mean()) < 5 * std / math.sqrt(n), name


def test_head_is_the_token_embedding() -> None:
    model = make()
    assert model.head_weight is model.token_embeddings.weight
    hidden = torch.randn(2, 3, D, dtype=torch.float64)
    expected = torch.einsum("bsd,vd->bsv", hidden, model.token_embeddings.weight)
    torch.testing.assert_close(model.token_logits(hidden), expected)
    ids = torch.randint(V, (2, P))
    torch.testing.assert_close(model(ids), model.token_logits(model.hidden(ids)))
    assert "lm_head.weight" not in model.state_dict()


@plain_cases
def test_from_config_builds_that_shape_from_the_seed(case: Case) -> None:
    """Encoder and decoder of a shape begin as the same."""
    shape = ModelConfig(n_vocab=V, n_embd=D, n_head=H, n_positions=P, n_layer=L, p_dropout=0.25)
    torch.manual_seed(3)
    a = case.kind.from_config(shape)
    torch.manual_seed(3)
    b = DecoderLM(V, D, H, P, L, 0.25)
    assert a.shape == shape
    assert a.dropout.p == a.blocks[0].mha.dropout.p == a.blocks[1].ff.dropout.p == 0.25
    ours, theirs = a.state_dict(), b.state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert a.flops_per_token == b.flops_per_token


@settings(max_examples=60, deadline=None)
@given(
    half=st.integers(1, 6),
    n=st.integers(1, 40),
    shift=st.integers(0, 200),
    seed=st.integers(0, 2**16),
)
def test_rotated_scores_depend_on_the_distance_only(
    half: int, n: int, shift: int, seed: int
) -> None:
    torch.manual_seed(seed)
    table = rotation_table(n + shift, 2 * half).double()
    q, k = torch.randn(2, 1, 1, 1, 2 * half, dtype=torch.float64).expand(2, 1, 1, n, 2 * half)
    here, there = table[:, :n], table[:, shift : shift + n]
    scores = rotate(q, here) @ rotate(k, here).mT
    moved = rotate(q, there) @ rotate(k, there).mT
    torch.testing.assert_close(scores, moved, rtol=0, atol=1e-5)  # the table is float32
    diagonals = [scores[0, 0].diagonal(offset) for offset in range(-n + 1, n)]
    assert all(float(d.max() - d.min()) < 1e-5 for d in diagonals)
    torch.testing.assert_close(rotate(q, there).norm(dim=-1), q.norm(dim=-1), rtol=1e-6, atol=0)
    # Position 0 is not turned, another one is.
    assert torch.equal(rotate(q, here)[..., 0, :], q[..., 0, :])
    if n > 1:
        assert not torch.allclose(rotate(q, here)[..., 1, :], q[..., 1, :], atol=1e-9)


def test_a_rotated_model_sees_order_and_its_first_token_has_position_0() -> None:
    """Without causality's help: with the last query alone, a permuted past gives other logits."""
    model = make(ROPE)
    ids = torch.arange(6)[None]
    swapped = ids[:, [1, 0, 2, 3, 4, 5]]
    assert not torch.allclose(model(ids)[0, -1], model(swapped)[0, -1], atol=1e-6)
    assert "position_embeddings.weight" not in model.state_dict()
    assert not any("rotation" in name for name in model.state_dict())


def test_normalised_queries_and_keys_bound_the_scores() -> None:
    mha = SelfAttention(part_shape(12, 3, qk_norm=True)).double()
    with torch.no_grad():
        q, kT, _ = mha.q_kT_v(1e6 * torch.randn(2, 5, 12, dtype=torch.float64))
        q, kT = mha.placed(q, kT, None)
    assert float((q @ kT * mha.scale).abs().max()) <= 4**0.5 + 1e-9  # √HD
    torch.testing.assert_close(q.square().mean(-1), torch.ones_like(q[..., 0]))
    torch.testing.assert_close(kT.square().mean(-2), torch.ones_like(q[..., 0]))


def test_initial_weights_with_all_options() -> None:
    torch.manual_seed(0)
    model = DecoderLM(200, 32, 4, 16, 3, **ALL_OPTIONS)
    for name, parameter in model.named_parameters():
        assert parameter.ndim == 2, name  # neither biases nor norms
        if "mha.proj" in name or "linear_out" in name:
            assert not parameter.any(), name
        else:
            assert abs(parameter.std() / 0.02 - 1) < 0.1, name
    # Each block begins as adding nothing.
    ids = torch.randint(200, (1, 16))
    assert torch.equal(model.eval().hidden(ids), model.ln(model.embed(ids)))


def test_the_head_bias_is_the_log_frequency_and_not_trained() -> None:
    model = DecoderLM(4, 8, 2, 4, 1, 0.0, head_bias="unigram")
    assert torch.equal(model.head_bias, torch.zeros(4))
    counts = torch.tensor([7, 0, 1, 90])
    model.count_unigrams(counts)
    frequencies = [(c + 0.5) / 100 for c in (7, 0, 1, 90)]
    with torch.no_grad():
        model.token_embeddings.weight.zero_()
    probabilities = model(torch.zeros(1, 1, dtype=torch.int64))[0, 0].softmax(0)
    torch.testing.assert_close(probabilities, torch.tensor(frequencies))
    mean = sum(f * float(b) for f, b in zip(frequencies, model.head_bias, strict=True))
    assert mean == pytest.approx(0.0, abs=1e-6)
    assert "head_bias" in model.state_dict()
    assert "head_bias" not in dict(model.named_parameters())
    with pytest.raises(ValueError, match="no head bias"):
        DecoderLM(4, 8, 2, 4, 1).count_unigrams(counts)


def test_an_odd_head_width_cannot_rotate() -> None:
    with pytest.raises(ValueError, match=r"n_embd / n_head = 3 is odd"):
        DecoderLM(V, 6, 2, P, L, positions="rope")
    DecoderLM(V, 6, 2, P, L)


@pytest.mark.parametrize("case", [DECODER, ENCODER, ROPE], ids=str)
def test_unusable_input_is_a_clear_error(case: Case) -> None:
    model, ids = make(case), torch.zeros(1, P + 1, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"10 tokens .* for 9 \(n_positions\)"):
        model(ids)
    assert model(ids[:, :P]).shape == (1, P, V)
    with pytest.raises(ValueError, match=r"\(1, 4\), expected that of input_ids, \(1, 5\)"):
        model(ids[:, :5], torch.ones(1, 4))
    with pytest.raises(ValueError, match=r"n_embd = 10 is not a multiple of n_head = 4"):
        DecoderLM(V, 10, 4, P, L)


def test_a_model_that_is_bf16_itself_rotates_with_masks_and_caches() -> None:
    """Without autocast: of the two attentions only the fused one takes float32 queries."""
    torch.manual_seed(0)
    wide = DecoderLM(97, 32, 2, 16, 2, 0.0, positions="rope").eval()
    low = copy.deepcopy(wide).bfloat16()
    ids = torch.randint(0, 97, (2, 9))
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    cache = KeyValueCache(low.shape, 2, 12, low.head_weight)
    with torch.no_grad():
        expected = wide(ids)
        for found in (low(ids), low.token_logits(low.extend(ids, cache, None))):
            assert found.dtype == torch.bfloat16
            assert (found.float() - expected).norm() < 3e-2 * expected.norm()
        masked = low(ids, mask).float() - wide(ids, mask)
        assert masked[mask != 0].norm() < 3e-2 * expected.norm()
