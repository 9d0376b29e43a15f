"""Options of the decoder against the plain float64 reference: logits, gradients, padding, init."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.attention import MultiHeadAttention
from model.config import ModelConfig
from model.decoder import DecoderLM
from model.generation.kv_cache import KeyValueCache
from model.rotary import rotate, rotation_table
from tests.support import reference_decoder
from tests.support.comparing import (
    ALL_OPTIONS,
    EACH_AND_ALL,
    assert_same_gradients,
    gradients,
    named,
)

V, D, H, P, L = 23, 8, 2, 9, 2
each_and_all = pytest.mark.parametrize("options", EACH_AND_ALL, ids=named)


def make(options: dict[str, Any], seed: int = 0) -> DecoderLM:
    """A float64 model whose parameters and head bias are all far from their initial values."""
    torch.manual_seed(seed)
    model = DecoderLM(V, D, H, P, L, 0.0, **options).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    if model.head_bias is not None:
        model.head_bias.normal_()
    return model


def expected_logits(model: DecoderLM, ids: Tensor) -> Tensor:
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    return reference_decoder.logits_of_prompt(tensors, ids, H, L, options=model.shape.options())


@each_and_all
def test_logits_and_all_gradients_equal_the_reference(options: dict[str, Any]) -> None:
    model = make(options)
    assert model.shape.options() == options
    ids = torch.randint(V, (2, P))
    logits = model(ids)
    expected = torch.stack([expected_logits(model, row) for row in ids])
    torch.testing.assert_close(logits, expected, rtol=1e-10, atol=1e-11)
    # ... and the option does something, where it is not about what a model begins with.
    if options.keys() - {"zero_init", "bias"}:
        plain = DecoderLM.from_config(ModelConfig(**model.shape.sizes())).double()
        plain.load_state_dict(model.state_dict(), strict=False)
        assert not torch.allclose(plain(ids), logits, atol=1e-3)

    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    expected_loss = torch.stack(
        [reference_decoder.next_token_loss(a, row) for a, row in zip(expected, ids, strict=True)]
    ).mean()
    torch.testing.assert_close(loss, expected_loss)
    assert_same_gradients(gradients(loss, model), gradients(expected_loss, model))


@settings(max_examples=40, deadline=None)
@given(
    options=st.sampled_from(EACH_AND_ALL),
    mask=st.lists(st.integers(0, 1), min_size=1, max_size=P).filter(any),
    seed=st.integers(0, 2**16),
)
def test_padding_anywhere_changes_nothing(
    options: dict[str, Any], mask: list[int], seed: int
) -> None:
    """Logits of the content equal those of the content alone, in the reference and in our model."""
    model = make(options, seed)
    ids = torch.randint(V, (1, len(mask)))
    content = torch.tensor(mask).bool()
    ours = model(ids, torch.tensor([mask], dtype=torch.float32))[0, content]
    alone = ids[0, content]
    torch.testing.assert_close(ours, expected_logits(model, alone), rtol=1e-10, atol=1e-11)
    torch.testing.assert_close(ours, model(alone[None])[0], rtol=1e-10, atol=1e-11)


def test_gradients_with_left_padding_equal_those_of_the_prompts_alone() -> None:
    model = make(ALL_OPTIONS)
    lengths = [4, 7, 2]
    width = max(lengths)
    ids = torch.randint(V, (3, width))
    mask = torch.tensor([[0.0] * (width - n) + [1.0] * n for n in lengths])
    direction = torch.randn(3, V, dtype=torch.float64)
    ours = (model(ids, mask)[:, -1] * direction).sum()
    last = [expected_logits(model, row[-n:])[-1] for row, n in zip(ids, lengths, strict=True)]
    expected = (torch.stack(last) * direction).sum()
    assert_same_gradients(gradients(ours, model), gradients(expected, model))


@each_and_all
def test_nothing_but_padding_is_finite(options: dict[str, Any]) -> None:
    model = make(options)
    logits = model(torch.randint(V, (1, 5)), torch.zeros(1, 5))
    assert logits.isfinite().all()
    assert all(g.isfinite().all() for g in gradients(logits.sum(), model).values())


@pytest.mark.parametrize("masked", [False, True])
@each_and_all
def test_the_future_changes_nothing_before_it(options: dict[str, Any], masked: bool) -> None:
    model = make(options)
    ids = torch.randint(V, (2, P))
    mask = torch.ones(2, P) if masked else None
    before = model(ids, mask)
    for t in range(1, P):
        changed = ids.clone()
        changed[:, t:] = (changed[:, t:] + 1 + torch.randint(V - 1, (2, P - t))) % V
        after = model(changed, mask)
        assert torch.equal(after[:, :t], before[:, :t])
        assert not torch.equal(after[:, t], before[:, t])


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
    model = make({"positions": "rope"})
    ids = torch.arange(6)[None]
    swapped = ids[:, [1, 0, 2, 3, 4, 5]]
    assert not torch.allclose(model(ids)[0, -1], model(swapped)[0, -1], atol=1e-6)
    assert "position_embeddings.weight" not in model.state_dict()
    assert not any("rotation" in name for name in model.state_dict())


def test_normalised_queries_and_keys_bound_the_scores() -> None:
    mha = MultiHeadAttention(12, 3, qk_norm=True).double()
    with torch.no_grad():
        q, kT, _ = mha.q_kT_v(1e6 * torch.randn(2, 5, 12, dtype=torch.float64))
        q, kT = mha.placed(q, kT, None)
    assert float((q @ kT * mha.scale).abs().max()) <= 4**0.5 + 1e-9  # √HD
    torch.testing.assert_close(q.square().mean(-1), torch.ones_like(q[..., 0]))
    torch.testing.assert_close(kT.square().mean(-2), torch.ones_like(q[..., 0]))


def test_initial_weights() -> None:
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


def test_too_long_a_sequence_is_a_clear_error_where_positions_rotate_too() -> None:
    model = make({"positions": "rope"})
    with pytest.raises(ValueError, match=r"10 tokens .* for 9 \(n_positions\)"):
        model(torch.zeros(1, P + 1, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"\(1, 4\), expected that of input_ids, \(1, 5\)"):
        model(torch.zeros(1, 5, dtype=torch.int64), torch.ones(1, 4))


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
