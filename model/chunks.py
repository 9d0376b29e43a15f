"""How many tokens' logits the loss holds at once. No torch."""

from __future__ import annotations

LOGIT_CHUNK_ELEMENTS = 1 << 25
"""Logits alive at once in the loss (tokens x vocabulary)."""


def loss_chunk_tokens(n_vocab: int) -> int:
    """Tokens in one chunk of the linear cross-entropy, a multiple of 32 and at least 32."""
    return max(32, LOGIT_CHUNK_ELEMENTS // n_vocab // 32 * 32)
