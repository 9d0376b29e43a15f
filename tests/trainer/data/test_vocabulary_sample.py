"""Drawn token ids: their number, their chances, and that nothing but (seed, step, micro) counts."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.data.vocabulary_sample import (
    POWER,
    VocabularySampler,
    inclusion_probabilities,
    systematic_sample,
)

counts_and_samples = st.lists(
    st.one_of(st.integers(0, 20), st.integers(0, 1 << 40)), min_size=1, max_size=60
).flatmap(lambda counts: st.tuples(st.just(np.array(counts)), st.integers(1, len(counts))))


@given(counts_and_samples)
def test_chances_are_shares_cut_at_one_and_add_up(case: tuple[np.ndarray, int]) -> None:
    counts, n_samples = case
    chances = inclusion_probabilities(counts, n_samples)
    assert chances.shape == counts.shape
    assert ((chances > 0) & (chances <= 1)).all()
    assert chances.sum() == pytest.approx(n_samples, rel=1e-9)
    shares = (counts + 0.5) ** POWER
    uncertain = chances < 1
    if n_samples == len(counts):
        assert not uncertain.any()
        return
    assert uncertain.any()
    c = (chances / shares)[uncertain]
    assert c == pytest.approx(np.full(len(c), c[0]), rel=1e-9)
    assert chances == pytest.approx(np.minimum(1.0, c[0] * shares), rel=1e-9)


@given(counts_and_samples, st.integers(0, 2**32 - 1), st.integers(0, 10**6), st.integers(0, 9))
def test_exactly_so_many_different_ids_in_order(
    case: tuple[np.ndarray, int], seed: int, step: int, micro: int
) -> None:
    counts, n_samples = case
    ids = VocabularySampler(counts, n_samples, seed).sample(step, micro)
    assert ids.shape == (n_samples,)
    assert all(a < b for a, b in itertools.pairwise(ids.tolist()))
    assert ids[0] >= 0
    assert ids[-1] < len(counts)
    certain = np.flatnonzero(inclusion_probabilities(counts, n_samples) == 1.0)
    assert set(certain.tolist()) <= set(ids.tolist())


@given(
    counts_and_samples,
    st.one_of(st.sampled_from([0.0, 1e-17, float(np.nextafter(1, 0))]), st.floats(0, 1 - 1e-9)),
)
def test_marks_on_the_edge_of_a_stretch_still_draw_different_ids(
    case: tuple[np.ndarray, int], start: float
) -> None:
    """The first mark is rarely 0 or almost 1; rounding must not lose or double an id there."""
    counts, n_samples = case
    reached = np.cumsum(inclusion_probabilities(counts, n_samples))
    drawn = systematic_sample(reached, n_samples, start)
    assert len(drawn) == n_samples
    assert all(a < b for a, b in itertools.pairwise(drawn.tolist()))
    assert drawn[0] >= 0
    assert drawn[-1] < len(counts)


def test_stretches_are_drawn_as_their_marks_fall() -> None:
    lengths = np.array([0.5, 0.25, 1.0, 0.75, 0.5])
    for start, expected in ((0.1, [0, 2, 3]), (0.5, [1, 2, 4]), (0.7, [1, 2, 4]), (0.8, [2, 3, 4])):
        assert systematic_sample(lengths.cumsum(), 3, start).tolist() == expected


@pytest.mark.parametrize("n_samples", [1, 5, 12, 29])
def test_ids_are_drawn_as_often_as_their_chances_say(n_samples: int) -> None:
    counts = (10_000 / np.arange(1, 31) ** 1.5).astype(np.int64)  # as words are distributed
    sampler = VocabularySampler(counts, n_samples, seed=3)
    n_draws = 3000
    drawn = np.zeros(len(counts))
    for step in range(n_draws):
        drawn[sampler.sample(step, 0)] += 1
    p = sampler.inclusion
    standard_error = np.sqrt(p * (1 - p) / n_draws)
    off = np.abs(drawn / n_draws - p)
    assert (off <= 4.5 * standard_error + 1e-12).all()
    assert (p < 1).sum() > 1


def test_the_draw_is_a_pure_function_of_seed_step_and_micro_batch() -> None:
    counts = np.arange(1, 200)
    sampler = VocabularySampler(counts, 40, seed=1)
    first = sampler.sample(7, 1)
    sampler.sample(8, 0)
    np.random.default_rng(0).random(5)
    assert np.array_equal(sampler.sample(7, 1), first)
    assert np.array_equal(VocabularySampler(counts, 40, seed=1).sample(7, 1), first)
    sampler.sample(500, 0)  # an order of other steps
    assert np.array_equal(sampler.sample(7, 1), first)
    for other in (
        sampler.sample(7, 0),
        sampler.sample(1, 7),
        VocabularySampler(counts, 40, seed=2).sample(7, 1),
    ):
        assert not np.array_equal(other, first)


def test_any_two_ids_can_be_drawn_together() -> None:
    """In one fixed order, neighbours whose chances add up to less than 1 would exclude another."""
    counts = np.full(12, 5)
    sampler = VocabularySampler(counts, 3, seed=0)
    together = set()
    for step in range(64 * 60):
        together.update(itertools.combinations(sampler.sample(step, 0).tolist(), 2))
    assert together == set(itertools.combinations(range(12), 2))
