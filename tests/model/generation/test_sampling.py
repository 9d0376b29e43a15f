"""Distributions over the next token: temperature, top-k, top-p, and what is drawn from them."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from budgetsweep.errors import CheckpointError
from model import softmax_with_temperature
from model.config import SamplingConfig
from model.generation.sampling import choose_tokens, next_token_probabilities

V = 23


def test_softmax_with_temperature_is_the_formula() -> None:
    logits = torch.randn(4, V, dtype=torch.float64) * 3
    for temperature in (0.1, 0.7, 1.0, 2.5):
        e = torch.exp(logits / temperature)
        expected = e / e.sum(dim=1, keepdim=True)
        torch.testing.assert_close(softmax_with_temperature(logits, temperature), expected)


def test_temperature_zero_is_greedy() -> None:
    logits = torch.tensor([[0.0, 3.0, 2.0], [1.0, -1.0, 1.0], [-math.inf, -5.0, -9.0]])
    expected = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    assert torch.equal(softmax_with_temperature(logits, 0), expected)
    assert torch.equal(softmax_with_temperature(logits, 0.0), expected)


@pytest.mark.parametrize("temperature", [1e-5, 1e-30, 1e-45, 1e-300, 1e30])
def test_no_temperature_and_no_logit_overflows(temperature: float) -> None:
    logits = torch.tensor([[3e38, 1.0, -3e38, -math.inf], [5.0, 4.0, 3.0, 2.0]])
    p = softmax_with_temperature(logits, temperature)
    assert p.isfinite().all()
    torch.testing.assert_close(p.sum(dim=1), torch.ones(2))
    if temperature < 1:
        assert torch.equal(p, softmax_with_temperature(logits, 0))
    else:
        torch.testing.assert_close(p[1], torch.full((4,), 0.25))


def test_low_precision_logits_give_float32_probabilities() -> None:
    logits = torch.randn(2, V).bfloat16()
    p = softmax_with_temperature(logits, 0.5)
    assert p.dtype == torch.float32
    torch.testing.assert_close(p, softmax_with_temperature(logits.float(), 0.5))


@pytest.mark.parametrize("temperature", [-1.0, -1e-9, math.nan, math.inf])
def test_an_impossible_temperature_is_refused(temperature: float) -> None:
    with pytest.raises(ValueError, match="temperature"):
        softmax_with_temperature(torch.zeros(1, 3), temperature)


@settings(max_examples=60, deadline=None)
@given(
    logits=st.lists(st.integers(-6, 6), min_size=1, max_size=12),
    temperature=st.sampled_from([0.3, 1.0, 2.0]),
    top_k=st.none() | st.integers(1, 14),
    top_p=st.none() | st.floats(0.01, 1.0),
)
def test_top_k_and_top_p_keep_what_they_say(
    logits: list[int], temperature: float, top_k: int | None, top_p: float | None
) -> None:
    weights = [math.exp(x / temperature) for x in logits]
    order = sorted(range(len(logits)), key=lambda i: -logits[i])
    kept = order
    if top_k is not None:
        kept = [i for i in order if logits[i] >= logits[order[min(top_k, len(order)) - 1]]]
    if top_p is not None:
        p = [weights[i] / sum(weights[j] for j in kept) for i in kept]
        sums = list(itertools.accumulate(p))
        assume(all(abs(s - top_p) > 1e-9 for s in sums))
        kept = kept[: next((n for n, s in enumerate(sums, 1) if s >= top_p), len(kept))]
    sampling = SamplingConfig(temperature=temperature, top_k=top_k, top_p=top_p)
    ours = next_token_probabilities(torch.tensor([logits], dtype=torch.float64), sampling)[0]
    assert [i for i, p in enumerate(ours.tolist()) if p > 0] == sorted(kept)
    ours = ours / ours.sum()
    expected = torch.tensor([weights[i] if i in kept else 0.0 for i in range(len(logits))])
    torch.testing.assert_close(ours, (expected / expected.sum()).double(), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    "sampling",
    [
        SamplingConfig(temperature=1.0),
        SamplingConfig(temperature=0.5, top_k=4),
        SamplingConfig(temperature=2.0, top_p=0.8),
        SamplingConfig(temperature=1.0, top_k=6, top_p=0.7),
    ],
)
def test_evenly_spaced_draws_give_each_token_its_share(sampling: SamplingConfig) -> None:
    torch.manual_seed(0)
    logits = torch.randn(1, V, dtype=torch.float64) * 2
    n = 20_000
    draws = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    chosen = torch.tensor(choose_tokens(logits.expand(n, V), sampling, draws))
    p = next_token_probabilities(logits, sampling)[0]
    counts = torch.bincount(chosen, minlength=V)
    assert (counts - n * p / p.sum()).abs().max() <= 1
    assert counts[p == 0].sum() == 0


def test_the_ends_of_the_unit_interval_give_tokens_that_can_occur() -> None:
    logits = torch.tensor([[-math.inf, 0.0, 0.0, -math.inf]]).expand(2, 4)
    draws = torch.tensor([0.0, 1.0 - 2.0**-53], dtype=torch.float64)
    assert choose_tokens(logits, SamplingConfig(temperature=1.0), draws) == [1, 2]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite_are_refused(bad: float, temperature: float) -> None:
    logits = torch.tensor([[0.0, 1.0], [bad, 0.0]])
    with pytest.raises(CheckpointError, match="not finite"):
        choose_tokens(logits, SamplingConfig(temperature=temperature), torch.zeros(2))
