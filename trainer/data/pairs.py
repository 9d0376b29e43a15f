"""Pairs of source and target text in prepared tokens, and their batches. Loads torch on use only.

The stream of a pair source is `source ids, eot, target ids, eot` for each article. A batch is a
pure function of (seed, step, micro-batch), in the manner of `trainer.data.sampler`: each epoch
visits every pair once, in an order of its own that is not stored.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from budgetsweep.errors import DataError
from trainer.data.sampler import EpochOrder
from trainer.data.shards.tokens import TokenArray

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class PairIndex:
    """Where each pair lies in a token stream of `source eot target eot`.

    What follows the last whole pair (a stream cut to a number of tokens) is left out.
    The tokens are those of a pair source (`TokenData.pairs`); they stay memory-mapped.
    """

    def __init__(self, tokens: TokenArray, eot: int) -> None:
        found = [np.empty(0, np.int64)]
        first = 0
        for part in tokens.parts:
            found.append(np.flatnonzero(part == eot) + first)
            first += len(part)
        ends = np.concatenate(found)
        self.eot = eot
        self._tokens = tokens
        self._ends = ends[: len(ends) // 2 * 2]
        """Position of each end-of-text id, those of sources and targets in turn."""

    def __len__(self) -> int:
        return len(self._ends) // 2

    def pair(self, i: int) -> tuple[NDArray[np.uint16], NDArray[np.uint16]]:
        """Source and target of pair `i`: (n,) and (m,) ids without end-of-text; n or m may be 0.

        Raises:
            IndexError: i is not in 0 … len - 1.
        """
        if not 0 <= i < len(self):
            raise IndexError(f"pair {i}: expected 0 to {len(self) - 1}")
        begin = int(self._ends[2 * i - 1]) + 1 if i else 0
        middle, end = self._ends[2 * i : 2 * i + 2].tolist()
        both = self._tokens[begin:end]
        return both[: middle - begin], both[middle - begin + 1 :]

    def tokens_of(self, n_pairs: int) -> int:
        """Tokens of the first so many pairs, end-of-text ids included; of all, if there are fewer.

        Cut there, a stream holds exactly these pairs.
        """
        last = min(2 * n_pairs, len(self._ends)) - 1
        return int(self._ends[last]) + 1 if last > 0 else 0

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(len, 2) ids of each source and target, without end-of-text."""
        return (np.diff(self._ends, prepend=-1) - 1).reshape(-1, 2)


class PairBatch(NamedTuple):
    """Pairs of one shape: the model reads target_ids[:, :-1] and predicts target_ids[:, 1:]."""

    source_ids: Tensor
    """(B, S) int64, padded with eot on the right."""
    target_ids: Tensor
    """(B, T+1) int64: eot (begin), the target's ids, eot (end) if it fits; padded with eot."""
    source_mask: Tensor
    """(B, S) float32, 1 for content and 0 for padding."""
    target_mask: Tensor
    """(B, T+1) float32, likewise; begin and end are content."""


class PairSampler(EpochOrder):
    """Random pairs for training: a pure function of (seed, step, micro-batch)."""

    def __init__(
        self,
        index: PairIndex,
        batch_size: int,
        source_len: int,
        target_len: int,
        seed: int,
        grad_accumulation_steps: int = 1,
    ) -> None:
        """Args: the pairs, sizes (B, S, T) and the run's seed.

        Raises:
            DataError: there is no pair.
        """
        if not len(index):
            raise DataError("the training text has no whole pair: prepare more of it")
        super().__init__(seed, batch_size, grad_accumulation_steps)
        self._index = index
        self._lengths = (source_len, target_len)

    def batch(self, step: int, micro: int, device: torch.device) -> PairBatch:
        """Micro-batch `micro` of optimiser step `step` (both from 0), of shape (B, S) and (B, T+1).

        A source longer than S loses its end, a target longer than T its end and the end-of-text id.
        """
        return _collate(self._index, self.draw_batch(step, micro), *self._lengths, device)

    def size(self, epoch: int) -> int:
        """Pairs."""
        del epoch
        return len(self._index)


def sequential_pairs(
    index: PairIndex, batch_size: int, source_len: int, target_len: int, device: torch.device
) -> Iterator[PairBatch]:
    """Every pair once, in order, cut as by `PairSampler`; the last batch may be smaller."""
    n = len(index)
    for first in range(0, n, batch_size):
        chosen = np.arange(first, min(first + batch_size, n))
        yield _collate(index, chosen, source_len, target_len, device)


def _collate(
    index: PairIndex,
    chosen: NDArray[np.int64],
    source_len: int,
    target_len: int,
    device: torch.device,
) -> PairBatch:
    import torch

    sources = np.full((len(chosen), source_len), index.eot, dtype=np.int64)
    targets = np.full((len(chosen), target_len + 1), index.eot, dtype=np.int64)
    n_source = np.empty(len(chosen), dtype=np.int64)
    n_target = np.empty(len(chosen), dtype=np.int64)
    for row, number in enumerate(chosen.tolist()):
        source, target = index.pair(number)
        source, shown = source[:source_len], target[:target_len]
        sources[row, : len(source)] = source
        targets[row, 1 : 1 + len(shown)] = shown
        n_source[row] = len(source)
        n_target[row] = 1 + min(len(target) + 1, target_len)
    arrays = (
        sources,
        targets,
        (np.arange(source_len) < n_source[:, None]).astype(np.float32),
        (np.arange(target_len + 1) < n_target[:, None]).astype(np.float32),
    )
    return PairBatch(*(torch.from_numpy(a).to(device, non_blocking=True) for a in arrays))


def target_bytes_per_token(
    index: PairIndex, target_len: int, token_bytes: NDArray[np.uint16]
) -> float | None:
    """UTF-8 bytes of target text for each predicted id, over what `sequential_pairs` predicts.

    Mean loss in nats over the predicted ids divided by (ln 2 times this) is bits per byte of target
    text. An end-of-text id that fits counts as an id without bytes, as in `TokenData`. None without
    pairs or without any byte.
    """
    n_bytes = n_tokens = 0
    for i in range(len(index)):
        target = index.pair(i)[1]
        n_bytes += int(token_bytes[target[:target_len]].sum(dtype=np.int64))
        n_tokens += min(len(target) + 1, target_len)
    return n_bytes / n_tokens if n_bytes else None
