"""How many tokens' logits the loss holds at once. No torch."""

from __future__ import annotations

CPU_CHUNK_LOGITS = 1 << 24
"""Logits in a chunk on a CPU."""
CUDA_CHUNK_LOGITS = 1 << 28
"""Logits in a chunk on a GPU, where few large kernels matter more. *Assumption*, not measured."""


def loss_chunk_tokens(n_vocab: int, kind: str = "cpu") -> int:
    """Tokens in one chunk of the linear cross-entropy, a multiple of 32 and at least 32.

    Args:
        n_vocab: logits of a token (V).
        kind: `cpu`, `cuda` or `mps`.
    """
    logits = CUDA_CHUNK_LOGITS if kind == "cuda" else CPU_CHUNK_LOGITS
    return max(32, logits // n_vocab // 32 * 32)
