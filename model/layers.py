"""Feed-forward network and pre-LN blocks."""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from model.attention import MultiHeadAttention
from model.cache import LayerCache, NewTokens


class FeedForward(nn.Module):
    """Position-wise network D -> 4D -> GELU -> D, dropout on the output."""

    def __init__(self, n_embd: int, p_dropout: float = 0.1) -> None:
        super().__init__()
        self.linear_in = nn.Linear(n_embd, 4 * n_embd)
        self.linear_out = nn.Linear(4 * n_embd, n_embd)
        self.dropout = nn.Dropout(p_dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the network to x (..., D); GELU is the exact one (erf)."""
        return self.dropout(self.linear_out(F.gelu(self.linear_in(x))))


class _Block(nn.Module):
    """x + attention(LN(x)), then x + feed-forward(LN(x)) (pre-LN, as in GPT-2)."""

    causal: ClassVar[bool]

    def __init__(self, n_embd: int, n_head: int, p_dropout: float = 0.1) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(n_embd)
        self.mha = MultiHeadAttention(n_embd, n_head, p_dropout, causal=self.causal)
        self.ln_2 = nn.LayerNorm(n_embd)
        self.ff = FeedForward(n_embd, p_dropout)

    def forward(self, x: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Transform x (B, S, D); attention_mask (B, S) is 1 for content and 0 for padding."""
        x = x + self.mha(self.ln_1(x), attention_mask)
        return x + self.ff(self.ln_2(x))


class DecoderBlock(_Block):
    """Pre-LN block in which no position sees the future."""

    causal = True

    def extend(self, x: Tensor, past: LayerCache, new: NewTokens) -> Tensor:
        """Transform new tokens x (B, T, D), which also see what `past` holds."""
        x = x + self.mha.extend(self.ln_1(x), past, new)
        return x + self.ff(self.ln_2(x))


class EncoderBlock(_Block):
    """Pre-LN block in which every position sees all content.

    BERT itself normalises after each addition; pre-LN trains without warm-up at these sizes and is
    what the decoder has (Xiong et al. 2020).
    """

    causal = False
