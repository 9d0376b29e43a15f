"""Batches: a pure function of (seed, step), every window once an epoch."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from budgetsweep.errors import DataError
from trainer.data.sampler import WindowSampler, permuted


class Counting:
    """Tokens whose id is their position, so that a window shows where it begins."""

    def __init__(self, n_tokens: int) -> None:
        self._n_tokens = n_tokens

    def __len__(self) -> int:
        return self._n_tokens

    def gather(self, starts: NDArray[np.int64], length: int) -> NDArray[np.int64]:
        assert starts.min() >= 0
        assert starts.max() + length <= self._n_tokens
        return starts[:, None] + np.arange(length)


def keys(seed: int) -> NDArray[np.uint64]:
    return np.random.SeedSequence(seed).generate_state(8, np.uint64)


@given(n=st.integers(1, 3000), seed=st.integers(0, 2**32))
def test_the_order_is_a_permutation(n: int, seed: int) -> None:
    order = permuted(np.arange(n, dtype=np.uint64), n, keys(seed))
    assert np.array_equal(np.sort(order), np.arange(n))


@pytest.mark.parametrize("n", [2, 3, 5, 10])
def test_each_window_comes_first_equally_often(n: int) -> None:
    # Chi-squared against the uniform distribution; 99.99 % quantile of the largest case is < 40.
    trials = 2000
    first = Counter(int(permuted(np.zeros(1, np.uint64), n, keys(s))[0]) for s in range(trials))
    expected = trials / n
    assert sum((first[i] - expected) ** 2 / expected for i in range(n)) < 40


def test_the_order_of_a_long_epoch_looks_random() -> None:
    # A random permutation has serial correlation of about n**-0.5 and about one fixed point.
    n = 20_000
    order = permuted(np.arange(n, dtype=np.uint64), n, keys(1)).astype(float)
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 5 / np.sqrt(n)
    assert (order == np.arange(n)).sum() < 10


@given(
    n_tokens=st.integers(2, 400),
    seq_len=st.integers(1, 40),
    batch_size=st.integers(1, 17),
    seed=st.integers(0, 2**32 - 1),
)
def test_an_epoch_visits_every_window_at_its_offset_once(
    n_tokens: int, seq_len: int, batch_size: int, seed: int
) -> None:
    if n_tokens <= seq_len:
        with pytest.raises(DataError, match="tokens and one window needs"):
            WindowSampler(Counting(n_tokens), batch_size, seq_len, seed)
        return
    sampler = WindowSampler(Counting(n_tokens), batch_size, seq_len, seed)
    lengths = [sampler.size(epoch) for epoch in range(3)]
    n_batches = -(-sum(lengths) // batch_size)
    windows = np.concatenate([sampler.batch(step) for step in range(n_batches)])
    assert windows.shape == (n_batches * batch_size, seq_len + 1)
    first = 0
    for epoch, length in enumerate(lengths):
        offset = sampler.offset(epoch)
        assert 0 <= offset < seq_len
        starts = np.sort(windows[first : first + length, 0])
        # All positions offset + i * seq_len whose window still fits, worked out the slow way.
        expected = list(range(offset, n_tokens - seq_len, seq_len))
        assert starts.tolist() == expected
        first += length


@given(step=st.integers(0, 500), micro=st.integers(0, 2), seed=st.integers(0, 2**32 - 1))
def test_a_batch_depends_on_nothing_but_seed_and_step(step: int, micro: int, seed: int) -> None:
    used = WindowSampler(Counting(1000), 4, 8, seed, grad_accumulation_steps=3)
    for earlier in range(0, 40, 7):
        used.batch(earlier, 1)
    fresh = WindowSampler(Counting(1000), 4, 8, seed, grad_accumulation_steps=3)
    assert np.array_equal(used.batch(step, micro), fresh.batch(step, micro))


def test_micro_batches_are_the_parts_of_the_large_batch() -> None:
    small = WindowSampler(Counting(500), 4, 8, seed=3, grad_accumulation_steps=3)
    large = WindowSampler(Counting(500), 12, 8, seed=3)
    for step in range(20):
        parts = np.concatenate([small.batch(step, micro) for micro in range(3)])
        assert np.array_equal(parts, large.batch(step))


def test_epochs_and_seeds_differ() -> None:
    sampler = WindowSampler(Counting(8 * 64 + 8), 1, 8, seed=0)
    length = sampler.size(0)
    first = sampler.draw(0, length) - sampler.offset(0)
    second = sampler.draw(length, sampler.size(1)) - sampler.offset(1)
    other = WindowSampler(Counting(8 * 64 + 8), 1, 8, seed=1)
    assert first[:30].tolist() != second[:30].tolist()
    assert first[:30].tolist() != (other.draw(0, length) - other.offset(0))[:30].tolist()
    assert len({sampler.offset(epoch) for epoch in range(100)}) == 8


def test_much_text_costs_neither_memory_nor_time_at_the_start() -> None:
    # 3 million windows; a stored permutation would be of that size.
    sampler = WindowSampler(Counting(100_000_000), 256, 32, seed=5)
    assert np.unique(sampler.draw(0, 100_000)).size == 100_000
    assert sampler.batch(10_000_000).shape == (256, 33)
