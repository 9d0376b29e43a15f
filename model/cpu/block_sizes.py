"""How much the loss and a CPU's attention compute at once (docs/experiments.md). No torch."""

from __future__ import annotations

CPU_CHUNK_LOGITS = 1 << 25
"""Logits in a chunk on a CPU: 640 tokens of GPT-2's vocabulary, 64 MB in bf16."""
CUDA_CHUNK_LOGITS = 1 << 28
"""Logits in a chunk on a GPU, where few large kernels matter more. *Assumption*, not measured."""


def loss_chunk_tokens(n_vocab: int, kind: str = "cpu") -> int:
    """Tokens in a chunk of the linear cross-entropy on `cpu`, `cuda` or `mps`, a multiple of 32."""
    logits = CUDA_CHUNK_LOGITS if kind == "cuda" else CPU_CHUNK_LOGITS
    return max(32, logits // n_vocab // 32 * 32)


SAMPLED_CHUNK_TOKENS = 4096
"""Tokens in one chunk of the sampled loss, whose logits are few."""

QUERY_BLOCK = 128
"""Queries that attention on a CPU in bf16 serves at once, without looking at later keys."""
SLOW_CPU_HEAD_DIM = 64
"""Up to this head width torch's bf16 attention on CPUs is not faster than its float32 one: forward
and backward take 5 times as long at 16, 4 times at 32, as long at 64 (torch 2.13, Xeon, AMX)."""
BLOCK_HEAD_DIMS = range(32, SLOW_CPU_HEAD_DIM + 1)
BLOCK_LENGTHS = range(64, 513)
"""Heads and keys for which attention in blocks takes less time than torch's. Longer sequences would
keep weights that grow with the square of their length."""


def attends_in_blocks(length: int, head_dim: int) -> bool:
    """Whether bf16 heads (B, H, S, HD) on a CPU are attended to in blocks (model.cpu.attention)."""
    return head_dim in BLOCK_HEAD_DIMS and length in BLOCK_LENGTHS


def query_blocks(queries: int, keys: int, causal: bool) -> list[tuple[int, int, int]]:
    """First query, end of the queries and number of keys that they see, of each block."""
    starts = range(0, queries, QUERY_BLOCK)
    blocks = [(start, min(start + QUERY_BLOCK, queries)) for start in starts]
    return [(start, end, end if causal else keys) for start, end in blocks]
