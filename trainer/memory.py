"""Peak memory of a training run, from its configuration alone. No torch.

The tensors that are alive at the fullest moments of a step are counted one by one: parameters,
gradients and Adam's two moments in float32; what each block saves for its backward pass; what the
chunked loss holds. On CUDA their sum is what the allocator shows. On a CPU the resident memory of
the process is larger: by the interpreter and PyTorch, and by holes in glibc's heap, where the
tensors of up to 32 MiB lie. Both are measured (`python -m benchmarks.memory`).
"""

from __future__ import annotations

from typing import Literal

from model.chunks import loss_chunk_tokens
from model.flops import count_params
from trainer.config import RunConfig

Kind = Literal["cpu", "cuda", "mps"]

EVAL_TOKENS = 4096
"""Least tokens of a validation batch: with those of a small training batch it would be slow."""

CPU_PROCESS_BYTES = 390_000_000
"""Resident memory of Python with PyTorch 2.13 and a tiny model trained: 357 MB in a fresh process,
405 MB in one that has trained many shapes (`trainer.threads`)."""
HEAP_BLOCK_BYTES = 32 << 20
"""Larger blocks are mappings of their own and leave no holes (`trainer.host`)."""
HEAP_HOLES = 0.43
"""Holes for each byte of saved tensors in the heap, fitted to the shapes of the benchmark (0.3 to
0.6 and more in small runs); the process's own size covers what it misses there."""
EMBEDDING_BLOCKS = 8
"""Blocks of the embedding's size that come and go in a step in bf16, with holes like the saved
ones (fitted); in fp32 they fit into each other's places."""
SLOW_CPU_HEAD_DIM = 64
"""Up to this head width attention on a CPU is in float32 (`model.attention`)."""


def estimate_memory_bytes(config: RunConfig, kind: Kind, bf16: bool) -> int:
    """Peak memory of a run.

    Args:
        config: its shape and batch.
        kind: `cpu`, `cuda` or `mps`.
        bf16: whether it computes in bf16 (`trainer.device.uses_bf16`).

    Returns:
        Bytes: of the whole process on a CPU, of the allocator on a GPU.
    """
    saved = saved_blocks(config, kind, bf16)
    alive = sum(count * size for count, size in saved)
    peak = _persistent(config) + max(
        alive + max(_loss(config, kind, bf16), _backward(config, kind)),
        _update(config),
        _evaluation(config, kind, bf16),
    )
    if kind != "cpu":
        return peak
    matrix = 4 * config.model.n_vocab * config.model.n_embd
    if matrix > HEAP_BLOCK_BYTES:
        matrix //= 2  # its bf16 copies may lie there
    blocks = [*saved, (EMBEDDING_BLOCKS, matrix)] if bf16 else saved
    in_heap = sum(count * size for count, size in blocks if size <= HEAP_BLOCK_BYTES)
    return CPU_PROCESS_BYTES + peak + round(HEAP_HOLES * in_heap)


def saved_blocks(config: RunConfig, kind: Kind, bf16: bool) -> list[tuple[int, int]]:
    """(count, bytes each) of what the forward pass of one micro-batch keeps for the backward.

    Weights are not among them, their bf16 copies are.
    """
    shape = config.model
    D, H, L, S = shape.n_embd, shape.n_head, shape.n_layer, config.seq_len
    N = config.batch_size * S
    low = 2 if bf16 else 4
    dropout = shape.p_dropout > 0
    flash = kind != "cpu" or not dropout  # with dropout PyTorch's CPU writes the weights out
    wide_heads = bf16 and (dropout or shape.head_dim <= SLOW_CPU_HEAD_DIM) and kind == "cpu"
    mask = 1 if kind == "cuda" else low  # bytes of a dropout mask's element
    block = [
        (2, N * D * 4),  # residual stream before each LayerNorm
        (4, N * 4),  # mean and 1/deviation of each LayerNorm
        (3, N * D * low),  # inputs of the projections: two LayerNorms' outputs, the heads' outputs
        (2, N * 4 * D * low),  # feed-forward before and after GELU
    ]
    if flash:
        block += [(4 if wide_heads else 3, N * D * (4 if wide_heads else low)), (1, N * H * 4)]
    else:
        block += [(3, N * D * 4 if bf16 else N * D * low), (3, N * H * S * 4)]
    if bf16:
        block += [(2, N * D * low), (12, D * D * low)]  # copies; of all weights of the block
    if dropout:
        block += [(2, N * D * mask)]
    rest = [(1, N * D * 4), (2, N * 4), (1, (N + config.batch_size) * 8)]
    if dropout:
        rest += [(1, N * D * (1 if kind == "cuda" else 4))]
    return [(L * count, size) for count, size in block] + rest


def _persistent(config: RunConfig) -> int:
    """Parameters and two moments; with accumulation the gradients outlive a micro-batch."""
    tensors = 3 + (config.grad_accumulation_steps > 1)
    return tensors * 4 * count_params(config.model)


def _loss(config: RunConfig, kind: Kind, bf16: bool) -> int:
    """What `linear_cross_entropy` holds: one chunk of logits, the matrix, both gradients."""
    V, D = config.model.n_vocab, config.model.n_embd
    N = config.batch_size * config.seq_len
    chunk = min(N, loss_chunk_tokens(V, kind))
    hidden = N * D * (4 + 4 + (2 if bf16 else 0))  # it, its gradient, its low-precision copy
    return hidden + (14 if bf16 else 12) * V * D + chunk * (V + 2 * D) * (2 if bf16 else 4)


def _backward(config: RunConfig, kind: Kind) -> int:
    """Beside the saved tensors: the head's gradient twice, one block's gradients."""
    shape, S = config.model, config.seq_len
    N = config.batch_size * S
    written_out = kind == "cpu" and shape.p_dropout > 0
    attention = 4 * shape.n_head * S if written_out else 0
    block = 4 * shape.n_embd + max(16 * shape.n_embd, attention)
    return 8 * shape.n_vocab * shape.n_embd + N * block


def _update(config: RunConfig) -> int:
    """Gradients, where they are not counted yet, and the embedding's two parts before their sum."""
    shape = config.model
    grads = 0 if config.grad_accumulation_steps > 1 else 4 * count_params(shape)
    return grads + 8 * shape.n_vocab * shape.n_embd


def _evaluation(config: RunConfig, kind: Kind, bf16: bool) -> int:
    """A validation batch: one block at a time, then one chunk of logits."""
    V, D, S = config.model.n_vocab, config.model.n_embd, max(2, config.seq_len)
    N = max(config.batch_size, EVAL_TOKENS // S) * S
    low = 2 if bf16 else 4
    chunk = min(N, loss_chunk_tokens(V, kind))
    logits = 4 * V * D + chunk * V * low + N * D * 4
    return max(N * D * (8 + 8 * low), logits)
