"""Masked-token training: what is chosen, what it becomes, the loss of it."""

import math
from collections.abc import Iterable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import model.encoder
from model.config import ModelConfig
from model.encoder import CorruptedTokens, EncoderLM, corrupt_tokens
from model.loss import linear_cross_entropy
from tests.support import reference_encoder as reference
from tests.support.comparing import assert_same_gradients, gradients
from tests.support.reference_decoder import softmax

V, D, H, P, L = 23, 8, 2, 7, 2
MASK_ID, SEPARATOR = 22, 21


def make(seed: int = 0) -> EncoderLM:
    """A float64 model whose parameters are all far from their initial values."""
    torch.manual_seed(seed)
    shape = ModelConfig(n_vocab=V, n_embd=D, n_head=H, n_positions=P, n_layer=L, p_dropout=0.0)
    encoder = EncoderLM(shape).double()
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return encoder


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_shares_are_80_10_10() -> None:
    ids = torch.randint(20, (300, 400), generator=seeded(1))
    inputs, chosen, targets = corrupt_tokens(ids, V, MASK_ID, 60, generator=seeded())
    assert (chosen.sum(dim=1) == 60).all()
    k = 300 * 60
    masked = int((inputs[chosen] == MASK_ID).sum())
    changed = int(((inputs != ids) & (inputs != MASK_ID)).sum())

    def expect(count: int, trials: int, p: float) -> None:
        assert abs(count - trials * p) < 5 * math.sqrt(trials * p * (1 - p))

    expect(masked, k, 0.8)
    other = (V - 2) / (V - 1)  # one random id in 22 is what stood there before
    expect(changed, k, 0.1 * other)
    expect(k - masked - changed, k, 0.1 + 0.1 * (1 - other))
    assert torch.equal(targets, ids[chosen])
    # Independent of the place: no column is chosen more often than chance allows.
    counts = chosen.sum(dim=0).double()
    assert ((counts - 300 * 0.15).abs() < 5 * math.sqrt(300 * 0.15 * 0.85)).all()


def test_random_ids_are_uniform_over_ordinary_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model.encoder, "P_MASK", 0.0)
    monkeypatch.setattr(model.encoder, "P_RANDOM", 1.0)
    ids = torch.zeros(200, 500, dtype=torch.int64)
    inputs, chosen, _ = corrupt_tokens(
        ids, V, MASK_ID, 500, generator=seeded(), special_ids=[SEPARATOR, 3]
    )
    assert chosen.all()
    counts = inputs.flatten().bincount(minlength=V).double()
    ordinary = torch.ones(V, dtype=torch.bool)
    ordinary[[3, SEPARATOR, MASK_ID]] = False
    assert not counts[~ordinary].any()
    p = 1 / 20
    assert ((counts[ordinary] - 1e5 * p).abs() < 5 * math.sqrt(1e5 * p * (1 - p))).all()


@settings(max_examples=100, deadline=None)
@given(
    rows=st.integers(1, 4),
    columns=st.integers(1, 12),
    seed=st.integers(0, 2**16),
    n_chosen=st.integers(1, 12),
)
def test_so_many_in_each_row_are_chosen_that_are_not_special(
    rows: int, columns: int, seed: int, n_chosen: int
) -> None:
    ids = torch.randint(V, (rows, columns), generator=seeded(seed))
    inputs, chosen, targets = corrupt_tokens(
        ids, V, MASK_ID, n_chosen, generator=seeded(), special_ids=[SEPARATOR]
    )
    eligible = (ids != MASK_ID) & (ids != SEPARATOR)
    assert not (chosen & ~eligible).any()
    assert torch.equal(chosen.sum(dim=1), eligible.sum(dim=1).clamp(max=n_chosen))
    assert torch.equal(inputs[~chosen], ids[~chosen])
    assert torch.equal(targets, ids[chosen])
    assert not (inputs[chosen] == SEPARATOR).any()


def test_corruption_is_a_function_of_the_generator() -> None:
    ids = torch.randint(20, (8, 30), generator=seeded(1))

    def corrupt(seed: int, ids: Tensor = ids) -> CorruptedTokens:
        return corrupt_tokens(ids, V, MASK_ID, 4, generator=seeded(seed))

    one, again, other = corrupt(3), corrupt(3), corrupt(4)
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
    assert not torch.equal(one.chosen, other.chosen)
    # Another id in one place changes nothing elsewhere.
    changed = ids.clone()
    changed[2, 5] = (ids[2, 5] + 1) % 20
    elsewhere = torch.ones(8, 30, dtype=torch.bool)
    elsewhere[2, 5] = False
    assert torch.equal(corrupt(3, changed).chosen, one.chosen)
    assert torch.equal(corrupt(3, changed).inputs[elsewhere], one.inputs[elsewhere])
    # The global generator is neither used nor moved.
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    corrupt(3)
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize(
    ("special_ids", "message"),
    [([V], r"\[22, 23\].*from 0 to 22"), (range(V), "at least one more")],
)
def test_unusable_ids_are_clear_errors(special_ids: Iterable[int], message: str) -> None:
    ids = torch.zeros(2, 4, dtype=torch.int64)
    with pytest.raises(ValueError, match=message):
        corrupt_tokens(ids, V, MASK_ID, 1, generator=seeded(), special_ids=special_ids)


def test_loss_is_that_of_the_chosen_positions_with_gradients() -> None:
    encoder = make()
    ids = torch.randint(20, (3, P))
    corrupted = corrupt_tokens(ids, V, MASK_ID, 3, generator=seeded())
    hidden = encoder.hidden(corrupted.inputs)[corrupted.chosen]
    loss = linear_cross_entropy(hidden, encoder.head_weight, corrupted.targets, 4)

    parameters = dict(encoder.named_parameters())
    losses = []
    for row, inputs, chosen in zip(ids, corrupted.inputs, corrupted.chosen, strict=True):
        logits = reference.encoder_logits(parameters, inputs, H, L)
        losses += [-torch.log(softmax(logits[t])[row[t]]) for t in chosen.nonzero().flatten()]
    assert len(losses) == 9
    expected = torch.stack(losses).mean()
    torch.testing.assert_close(loss, expected, rtol=1e-11, atol=1e-12)
    assert_same_gradients(gradients(loss, encoder), gradients(expected, encoder))


@pytest.mark.slow
def test_it_learns_to_fill_in_from_both_sides() -> None:
    """Fresh cyclic sequences a, a + 1, ...: a hidden token follows from any other.

    A hidden first token can only be known from what comes after it.
    """
    torch.manual_seed(0)
    n, length, mask_id = 12, 8, 12
    encoder = EncoderLM(
        ModelConfig(
            n_vocab=n + 1, n_embd=32, n_head=2, n_positions=length, n_layer=2, p_dropout=0.0
        )
    )
    optimizer = torch.optim.Adam(encoder.parameters(), lr=3e-3)
    generator = seeded()

    def batch(rows: int) -> Tensor:
        return (torch.randint(n, (rows, 1), generator=generator) + torch.arange(length)) % n

    losses = []
    for _ in range(250):
        corrupted = corrupt_tokens(batch(64), n + 1, mask_id, 1, generator=generator)
        hidden = encoder.hidden(corrupted.inputs)[corrupted.chosen]
        loss = linear_cross_entropy(hidden, encoder.head_weight, corrupted.targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 0.9 * math.log(n)
    ids = batch(100)
    hidden_first = ids.clone()
    hidden_first[:, 0] = mask_id
    guesses = encoder(hidden_first)[:, 0].argmax(dim=-1)
    assert (guesses == ids[:, 0]).double().mean() > 0.98
