"""The decoder against the plain float64 reference: logits, gradients, padding, dropout, init."""

import math
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.config import ModelConfig
from model.decoder import DecoderLM
from tests.support import reference_decoder
from tests.support.comparing import CapturedDropout, assert_same_gradients, gradients

V, D, H, P, L = 23, 8, 2, 9, 2


def make(p_dropout: float = 0.0, seed: int = 0) -> DecoderLM:
    """A float64 model whose parameters are all far from their initial values."""
    torch.manual_seed(seed)
    model = DecoderLM(V, D, H, P, L, p_dropout).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return model


def test_logits_and_all_gradients_equal_the_reference() -> None:
    model = make()
    ids = torch.randint(V, (3, P))
    parameters = dict(model.named_parameters())
    logits = model(ids)
    expected = torch.stack(
        [reference_decoder.logits_of_prompt(parameters, row, H, L) for row in ids]
    )
    torch.testing.assert_close(logits, expected, rtol=1e-11, atol=1e-12)

    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    expected_loss = torch.stack(
        [reference_decoder.next_token_loss(a, row) for a, row in zip(expected, ids, strict=True)]
    ).mean()
    torch.testing.assert_close(loss, expected_loss)
    assert_same_gradients(gradients(loss, model), gradients(expected_loss, model))


@settings(max_examples=25, deadline=None)
@given(
    mask=st.lists(st.integers(0, 1), min_size=1, max_size=P).filter(any),
    seed=st.integers(0, 2**16),
)
def test_padding_anywhere_changes_nothing(mask: list[int], seed: int) -> None:
    """Logits of the content equal those of the content alone, in the reference and in our model."""
    model = make(seed=seed)
    ids = torch.randint(V, (1, len(mask)))
    attention_mask = torch.tensor([mask], dtype=torch.float32)
    content = attention_mask[0].bool()
    ours = model(ids, attention_mask)[0, content]
    alone = ids[0, content]
    parameters = dict(model.named_parameters())
    expected = reference_decoder.logits_of_prompt(parameters, alone, H, L)
    torch.testing.assert_close(ours, expected, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(ours, model(alone[None])[0], rtol=1e-11, atol=1e-12)


def test_gradients_with_left_padding_equal_those_of_the_prompts_alone() -> None:
    model = make()
    lengths = [4, 7, 2]
    width = max(lengths)
    ids = torch.randint(V, (3, width))
    mask = torch.tensor([[0.0] * (width - n) + [1.0] * n for n in lengths])
    direction = torch.randn(3, V, dtype=torch.float64)
    parameters = dict(model.named_parameters())

    ours = (model(ids, mask)[:, -1] * direction).sum()
    last = [
        reference_decoder.logits_of_prompt(parameters, row[-n:], H, L)[-1]
        for row, n in zip(ids, lengths, strict=True)
    ]
    expected = (torch.stack(last) * direction).sum()
    assert_same_gradients(gradients(ours, model), gradients(expected, model))


def test_what_stands_under_the_padding_does_not_matter() -> None:
    model = make()
    mask = torch.tensor([[0.0, 0.0, 1.0, 1.0, 1.0]])
    ids = torch.randint(V, (1, 5))
    other = ids.clone()
    other[0, :2] = (ids[0, :2] + 1) % V
    assert torch.equal(model(ids, mask)[:, 2:], model(other, mask)[:, 2:])
    assert model(ids, torch.zeros(1, 5)).isfinite().all()


@pytest.mark.parametrize("masked", [False, True])
def test_the_future_changes_nothing_before_it(masked: bool) -> None:
    model = make()
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


def places_of_one_sample(masks: Iterator[Tensor], b: int) -> dict[str, Tensor]:
    """Where GPT-2 has dropout, in forward order, for sample b."""
    places = {"embedding": next(masks)[b]}
    for i in range(L):
        weights = next(masks)[b]
        for head in range(H):
            for t in range(P):
                places[f"blocks.{i}.mha.weights.{head}.{t}"] = weights[head, t, : t + 1]
        places[f"blocks.{i}.mha.output"] = next(masks)[b]
        places[f"blocks.{i}.ff.output"] = next(masks)[b]
    assert next(masks, None) is None
    return places


def test_dropout_is_where_gpt2_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the masks that the model drew, the reference gives the same logits and gradients."""
    model = make(p_dropout=0.4)
    ids = torch.randint(V, (2, P))
    dropout = CapturedDropout()
    monkeypatch.setattr(F, "dropout", dropout)
    logits = model(ids, torch.ones(2, P))  # with a mask, attention is written out
    monkeypatch.undo()

    parameters = dict(model.named_parameters())
    rows = []
    for b in range(2):
        places = places_of_one_sample(iter(dropout.masks), b)
        used: list[str] = []

        def drop(
            place: str, x: Tensor, places: dict[str, Tensor] = places, used: list[str] = used
        ) -> Tensor:
            used.append(place)
            return x * places[place]

        rows.append(reference_decoder.logits_of_prompt(parameters, ids[b], H, L, drop))
        assert sorted(used) == sorted(places)
    expected = torch.stack(rows)
    torch.testing.assert_close(logits, expected, rtol=1e-11, atol=1e-12)
    direction = torch.randn_like(logits)
    assert_same_gradients(
        gradients((logits * direction).sum(), model),
        gradients((expected * direction).sum(), model),
    )


def test_no_dropout_in_evaluation_or_at_zero() -> None:
    ids = torch.randint(V, (2, P))
    with_dropout, without = make(0.5), make(0.0)
    assert not torch.equal(with_dropout(ids), with_dropout(ids))
    assert torch.equal(with_dropout.eval()(ids), without(ids))


def test_embedding_dropout_in_expectation() -> None:
    model = make(p_dropout=0.3)
    ids = torch.randint(V, (1, P))
    draws = torch.stack([model.embed(ids) for _ in range(2000)])
    expected = model.eval().embed(ids)
    standard_error = expected.abs() * math.sqrt(0.3 / 0.7 / 2000)
    assert ((draws.mean(dim=0) - expected).abs() / standard_error).max() < 5


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


def test_from_config_builds_that_shape_from_the_seed() -> None:
    shape = ModelConfig(n_vocab=V, n_embd=D, n_head=H, n_positions=P, n_layer=L, p_dropout=0.25)
    torch.manual_seed(3)
    a = DecoderLM.from_config(shape)
    torch.manual_seed(3)
    b = DecoderLM(V, D, H, P, L, 0.25)
    assert a.shape == shape
    assert a.dropout.p == a.blocks[0].mha.dropout.p == a.blocks[1].ff.dropout.p == 0.25
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def test_too_long_a_sequence_is_a_clear_error() -> None:
    model = make()
    with pytest.raises(ValueError, match=r"10 tokens .* for 9 \(n_positions\)"):
        model(torch.zeros(1, P + 1, dtype=torch.int64))
    assert model(torch.zeros(1, P, dtype=torch.int64)).shape == (1, P, V)


def test_a_mask_of_another_shape_is_a_clear_error() -> None:
    with pytest.raises(ValueError, match=r"\(1, 4\), expected that of input_ids, \(1, 5\)"):
        make()(torch.zeros(1, 5, dtype=torch.int64), torch.ones(1, 4))
