"""Training batches as a pure function of (seed, step): to resume, a number is enough. No torch.

Each epoch cuts the text into windows of `seq_len` inputs and their targets (`seq_len` + 1 tokens,
the last of which begins the next window), starting at an offset of its own, and visits them in an
order of its own, each once. The order is not stored: a keyed bijection of 0 … n-1 (a Feistel
network with cycle walking; Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002)
gives the i-th window directly, so that a run over 10^8 tokens starts at once and needs no memory.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_right

import numpy as np
from numpy.typing import NDArray

from budgetsweep.errors import DataError
from trainer.data.shards.tokens import TokenArray

_ROUNDS = 8  # 4 already look random (Luby-Rackoff); small domains need more
_BLOCK = 4096  # items whose order is worked out at once: 0.2 ms a batch otherwise


class EpochOrder(ABC):
    """The items of a text, epoch after epoch, each once an epoch in an order of its own."""

    def __init__(self, seed: int, batch_size: int, micro_batches: int) -> None:
        self._seed, self._batch_size, self._micro_batches = seed, batch_size, micro_batches
        self._firsts = [0]  # first items of epoch 0, 1, …, counted over the whole run
        self._block_of: tuple[int, int, NDArray[np.int64]] = (-1, 0, np.empty(0, np.int64))

    @abstractmethod
    def size(self, epoch: int) -> int:
        """Items in an epoch; at least 1."""

    def place(self, epoch: int, items: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where the items 0 … size - 1 of an epoch lie; by default their numbers."""
        del epoch
        return items

    def draw_batch(self, step: int, micro: int) -> NDArray[np.int64]:
        """(B,) places of micro-batch `micro` of optimiser step `step`, both from 0."""
        first = (step * self._micro_batches + micro) * self._batch_size
        return self.draw(first, self._batch_size)

    def draw(self, first: int, count: int) -> NDArray[np.int64]:
        """(count,) places of what comes `first` … `first + count - 1` in the run."""
        parts = []
        while count:
            epoch = self._epoch_of(first)
            block, index = divmod(first - self._firsts[epoch], _BLOCK)
            part = self._block(epoch, block)[index : index + count]
            parts.append(part)
            first += part.size
            count -= part.size
        return np.concatenate(parts)

    def _epoch_of(self, item: int) -> int:
        while self._firsts[-1] <= item:
            self._firsts.append(self._firsts[-1] + self.size(len(self._firsts) - 1))
        return bisect_right(self._firsts, item) - 1

    def _block(self, epoch: int, block: int) -> NDArray[np.int64]:
        """Places `block` * _BLOCK … of an epoch, in its order."""
        if self._block_of[:2] != (epoch, block):
            n = self.size(epoch)
            order = np.arange(block * _BLOCK, min(n, (block + 1) * _BLOCK), dtype=np.uint64)
            items = permuted(order, n, self._keys(epoch)[:_ROUNDS]).astype(np.int64)
            self._block_of = (epoch, block, self.place(epoch, items))
        return self._block_of[2]

    def _keys(self, epoch: int) -> NDArray[np.uint64]:
        """Keys of the rounds, and one more."""
        sequence = np.random.SeedSequence([self._seed, epoch])
        return np.asarray(sequence.generate_state(_ROUNDS + 1, np.uint64), np.uint64)


class WindowSampler(EpochOrder):
    """Windows of one training text, epoch after epoch, without replacement within an epoch."""

    def __init__(
        self,
        tokens: TokenArray,
        batch_size: int,
        seq_len: int,
        seed: int,
        grad_accumulation_steps: int = 1,
    ) -> None:
        """Args: the run's text, sizes and seed.

        Raises:
            DataError: the text is shorter than one window.
        """
        if len(tokens) <= seq_len:
            raise DataError(
                f"the training text has {len(tokens):,} tokens and one window needs "
                f"{seq_len + 1:,} (seq_len + 1): prepare more text or choose a shorter seq_len"
            )
        super().__init__(seed, batch_size, grad_accumulation_steps)
        self._tokens = tokens
        self._seq_len = seq_len

    def batch(self, step: int, micro: int = 0) -> NDArray[np.int64]:
        """Micro-batch `micro` of optimiser step `step` (both from 0): (B, S + 1) int64."""
        return self._tokens.gather(self.draw_batch(step, micro), self._seq_len + 1)

    def place(self, epoch: int, items: NDArray[np.int64]) -> NDArray[np.int64]:
        """Token positions where windows begin."""
        return self.offset(epoch) + items * self._seq_len

    def offset(self, epoch: int) -> int:
        """Where the first window of `epoch` begins: 0 … seq_len - 1."""
        return int(self._keys(epoch)[-1] % min(self._seq_len, len(self._tokens) - self._seq_len))

    def size(self, epoch: int) -> int:
        """Windows that fit behind the offset of `epoch`; at least 1."""
        return (len(self._tokens) - 1 - self.offset(epoch)) // self._seq_len


def permuted(index: NDArray[np.uint64], n: int, keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Where a keyed bijection of 0 … n-1 sends each of `index` (any shape, values below n)."""
    bits = max(2, (n - 1).bit_length())
    result = _feistel(index, bits, keys)
    # Walk the cycle of each value that fell outside until it comes back inside.
    while (outside := result >= n).any():
        result[outside] = _feistel(result[outside], bits, keys)
    return result


def _feistel(x: NDArray[np.uint64], bits: int, keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A keyed bijection of the numbers of `bits` bits; halves may differ by one bit."""
    left_bits, right_bits = bits // 2, bits - bits // 2
    for key in keys:
        right = x & np.uint64((1 << right_bits) - 1)
        left = x >> np.uint64(right_bits)
        left ^= _mix(right ^ key) & np.uint64((1 << left_bits) - 1)
        x = (right << np.uint64(left_bits)) | left
        left_bits, right_bits = right_bits, left_bits
    return x


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The output function of SplitMix64 (Steele, Lea and Flood 2014); arithmetic modulo 2^64."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
