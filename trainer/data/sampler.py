"""Training batches as a pure function of (seed, step): to resume, a number is enough. No torch.

Each epoch cuts the text into windows of `seq_len` inputs and their targets (`seq_len` + 1 tokens,
the last of which begins the next window), starting at an offset of its own, and visits them in an
order of its own, each once. The order is not stored: a keyed bijection of 0 … n-1 (a Feistel
network with cycle walking; Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002)
gives the i-th window directly, so that a run over 10^8 tokens starts at once and needs no memory.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from budgetsweep.errors import DataError

_ROUNDS = 8  # 4 already look random (Luby-Rackoff); small domains need more
_BLOCK = 4096  # windows whose order is worked out at once: 0.2 ms a batch otherwise


class Tokens(Protocol):
    """What is needed of token data; `trainer.data.shards.tokens.TokenArray` has it."""

    def __len__(self) -> int:
        """Number of tokens."""

    def gather(self, starts: NDArray[np.int64], length: int) -> NDArray[np.int64]:
        """(B,) starts -> (B, length) token ids, int64."""


class WindowSampler:
    """Windows of one training text, epoch after epoch, without replacement within an epoch."""

    def __init__(
        self,
        tokens: Tokens,
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
        self._tokens = tokens
        self._batch_size = batch_size
        self._seq_len = seq_len
        self._seed = seed
        self._micro_batches = grad_accumulation_steps
        self._first_windows = [0]  # of epoch 0, 1, …, counted over the whole run
        self._keys_of: tuple[int, NDArray[np.uint64]] = (-1, np.empty(0, np.uint64))
        self._block_of: tuple[int, int, NDArray[np.int64]] = (-1, 0, np.empty(0, np.int64))

    def batch(self, step: int, micro: int = 0) -> NDArray[np.int64]:
        """Micro-batch `micro` of optimiser step `step` (both from 0): (B, S + 1) int64."""
        first = (step * self._micro_batches + micro) * self._batch_size
        return self._tokens.gather(self.starts(first, self._batch_size), self._seq_len + 1)

    def starts(self, first: int, count: int) -> NDArray[np.int64]:
        """Token positions where windows `first` … `first + count - 1` of the run begin."""
        parts = []
        while count:
            epoch = self._epoch_of(first)
            block, index = divmod(first - self._first_windows[epoch], _BLOCK)
            part = self._block(epoch, block)[index : index + count]
            parts.append(part)
            first += part.size
            count -= part.size
        return np.concatenate(parts)

    def offset(self, epoch: int) -> int:
        """Where the first window of `epoch` begins: 0 … seq_len - 1."""
        return int(self._keys(epoch)[-1] % min(self._seq_len, len(self._tokens) - self._seq_len))

    def windows_in_epoch(self, epoch: int) -> int:
        """Windows that fit behind the offset of `epoch`; at least 1."""
        return (len(self._tokens) - 1 - self.offset(epoch)) // self._seq_len

    def _epoch_of(self, window: int) -> int:
        bounds = self._first_windows
        while bounds[-1] <= window:
            bounds.append(bounds[-1] + self.windows_in_epoch(len(bounds) - 1))
        return bisect_right(bounds, window) - 1

    def _block(self, epoch: int, block: int) -> NDArray[np.int64]:
        """Starts of the windows `block` * _BLOCK … of an epoch, in their order."""
        if self._block_of[:2] != (epoch, block):
            n_windows = self.windows_in_epoch(epoch)
            last = min(n_windows, (block + 1) * _BLOCK)
            order = np.arange(block * _BLOCK, last, dtype=np.uint64)
            windows = permuted(order, n_windows, self._keys(epoch)[:_ROUNDS]).astype(np.int64)
            self._block_of = (epoch, block, self.offset(epoch) + windows * self._seq_len)
        return self._block_of[2]

    def _keys(self, epoch: int) -> NDArray[np.uint64]:
        if self._keys_of[0] != epoch:
            sequence = np.random.SeedSequence([self._seed, epoch])
            keys = np.asarray(sequence.generate_state(_ROUNDS + 1, np.uint64), np.uint64)
            self._keys_of = (epoch, keys)
        return self._keys_of[1]


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
