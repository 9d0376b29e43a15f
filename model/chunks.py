"""How many tokens' logits the loss holds at once. No torch.

Measured on a CPU (Xeon with AMX, one thread, torch 2.13): CPU time in µs a token of loss and
gradients together, V = 50257, bf16 autocast, least of four. "All": F.cross_entropy of all logits.

| tokens in a chunk | 64 | 128 | 192 | 320 | 512 | 1024 | 2048 | all |
|---|---|---|---|---|---|---|---|---|
| D = 64 | 245 | 185 | 166 | 159 | 151 | 157 | 161 | 1010 |
| D = 128 | 372 | 272 | 244 | 174 | 143 | 160 | 170 | 898 |

Small chunks pay for adding up the matrix's gradient (V x D a chunk), large ones leave the cache.
"""

from __future__ import annotations

CPU_CHUNK_LOGITS = 1 << 25
"""Logits in a chunk on a CPU: 640 tokens of GPT-2's vocabulary, 64 MB in bf16. Two threads take 9
to 20 % longer with half as many (D = 128, 2,048 tokens, four runs of 6 to 9 rounds), one thread as
long, within noise."""
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


SAMPLED_CHUNK_TOKENS = 4096
"""Tokens in one chunk of the sampled loss, whose logits are few."""
