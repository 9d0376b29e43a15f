"""Keys and values of tokens that a model has read, kept so that it need not read them again."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from model.config import ModelConfig


class NewTokens(NamedTuple):
    """Where the tokens that are being read stand."""

    positions: Tensor
    """(B, T) position of each token in its row, which is also its slot; -1 for padding."""
    allowed: Tensor | None
    """bool (B, 1, T, S): token t may see slot s; None: every token may see all S slots."""
    longest: int
    """Slots of the longest row once these tokens are read (S)."""


class LayerCache:
    """Keys and values of one layer, both (B, H, slots, HD)."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys = keys
        self.values = values
        self._rows = torch.arange(len(keys), device=keys.device)[:, None]

    def store(self, k: Tensor, v: Tensor, new: NewTokens) -> tuple[Tensor, Tensor]:
        """Keep k and v (B, H, T, HD) of new tokens; all that is kept, both (B, H, S, HD)."""
        self.keys[self._rows, :, new.positions] = k.transpose(1, 2).to(self.keys.dtype)
        self.values[self._rows, :, new.positions] = v.transpose(1, 2).to(self.values.dtype)
        return self.keys[:, :, : new.longest], self.values[:, :, : new.longest]


class LayerMemory(NamedTuple):
    """What cross-attention of one layer sees of another sequence: it never changes."""

    keys: Tensor
    """(B, H, S, HD)."""
    values: Tensor
    """(B, H, S, HD)."""
    allowed: Tensor | None
    """bool (B, 1, 1, S): whether position s may be seen; None: all may be."""


class KeyValueCache:
    """What each row of a batch has read.

    A row's slots hold its content only: the token at position t lies in slot t, whatever padding
    stood before it, so rows of unequal length need no common column. One slot more, the last, takes
    the keys and values of padding (slot -1); nobody reads it.
    """

    def __init__(self, shape: ModelConfig, n_rows: int, capacity: int, like: Tensor) -> None:
        """An empty cache for rows of at most `capacity` tokens.

        The shape is that of the model, or of the decoder's side of one; `like` is a tensor of the
        model's type and device.
        """
        # Zeros: a slot that may not be seen has weight 0, and 0 times whatever else might be NaN.
        size = (2, shape.n_layer, n_rows, shape.n_head, capacity + 1, shape.head_dim)
        self._all = like.new_zeros(size)
        self.capacity = capacity
        self.lengths = [0] * n_rows
        """Tokens that each row holds."""
        self.layers = [LayerCache(*pair) for pair in self._all.unbind(1)]

    def advance(self, input_ids: Tensor, attention_mask: Tensor | None) -> NewTokens:
        """Make place for tokens (B, T); the mask is 0 for padding, None: all content."""
        n_new = input_ids.shape[1]
        before = torch.tensor(self.lengths, dtype=torch.int64, device=input_ids.device)[:, None]
        if attention_mask is None:
            positions = before + torch.arange(n_new, device=input_ids.device)
            self.lengths = [length + n_new for length in self.lengths]
        else:
            content = attention_mask != 0
            positions = (before + content.cumsum(dim=1) - 1).masked_fill(~content, -1)
            counts = content.sum(dim=1).tolist()
            self.lengths = [a + b for a, b in zip(self.lengths, counts, strict=True)]
        longest = max(self.lengths, default=0)
        assert longest <= self.capacity, f"{longest} tokens in a cache for {self.capacity}"
        if n_new == 1 and attention_mask is None and min(self.lengths, default=0) == longest:
            return NewTokens(positions, None, longest)
        slots = torch.arange(longest, device=input_ids.device)
        return NewTokens(positions, slots <= positions[:, None, :, None], longest)

    def replace(self, rows: list[int], other: KeyValueCache) -> None:
        """Let these rows hold what the rows of a smaller cache hold."""
        for row, length in zip(rows, other.lengths, strict=True):
            self.lengths[row] = length
        index = torch.tensor(rows, device=self._all.device)
        self._all[:, :, index, :, : other.capacity] = other._all[:, :, :, :, : other.capacity]


class TargetCache(NamedTuple):
    """What the decoder of an encoder-decoder need not compute again."""

    past: KeyValueCache
    """What each target has read of itself."""
    memory: list[LayerMemory]
    """What each layer sees of the sources."""
