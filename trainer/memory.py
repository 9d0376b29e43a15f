"""Peak memory of a training run, from its configuration alone. No torch.

The tensors that are alive at the fullest moments of a step are counted one by one: parameters,
gradients and the optimiser's state in float32; what blocks save for the backward pass; what the
chunked loss holds. On CUDA their sum is what the allocator shows. On a CPU the resident memory of
the process is larger: by the interpreter and PyTorch, and by holes in glibc's heap, where the
tensors of up to 32 MiB lie. Both are measured (`python -m benchmarks.memory`).
"""

from __future__ import annotations

import math
from typing import NamedTuple

from model.config import EncoderDecoderConfig, ModelConfig
from model.cpu.block_sizes import (
    QUERY_BLOCK,
    SAMPLED_CHUNK_TOKENS,
    SLOW_CPU_HEAD_DIM,
    attends_in_blocks,
    loss_chunk_tokens,
    query_blocks,
)
from trainer.config import RunConfig
from trainer.events import DeviceKind

LARGEST_TEXT_ON_DEVICE_BYTES = 2 << 30
"""Larger training texts stay off a GPU (two bytes per token; `trainer.data.device_tokens`)."""
EVAL_TOKENS = 4096
"""Least tokens of a validation batch: with those of a small training batch it would be slow."""

CPU_PROCESS_BYTES = 267_000_000
"""Memory of Python with PyTorch 2.13 and a tiny model trained, mapped files left out: about 240 MB
in a fresh process, 310 MB in one that has trained many shapes (`trainer.hardware.environment`)."""
CUDA_WORKSPACES_BYTES = 4 * (32 << 20)
"""cuBLAS's, one for each of two threads on two streams (*assumption*: 32 MiB each, as on compute
capability 9.0; elsewhere 8 MiB)."""
HEAP_BLOCK_BYTES = 32 << 20
"""Larger blocks are mappings of their own and leave no holes
(`trainer.hardware.process_memory`)."""
HEAP_HOLES = {"bf16": 55e6, "fp32": 10e6}
"""The heap's holes are the geometric mean of this and the saved tensors in it: fitted, with the
next and the process's size, to the shapes of the benchmark so that the worst error is least."""
EMBEDDING_BLOCKS = 3.5
"""Blocks of the embedding's size that come and go in a step in bf16 and leave holes (fitted)."""


def estimate_memory_bytes(config: RunConfig, kind: DeviceKind, bf16: bool) -> int:
    """Peak memory of a run in bytes: of the whole process on a CPU, of the allocator on a GPU.

    `bf16`: whether it computes in bf16 (`trainer.hardware.device.uses_bf16`).
    """
    saved = saved_blocks(config, kind, bf16)
    alive = sum(count * size for count, size in saved)
    step = max(
        alive + max(_loss(config, kind, bf16), _backward(config, kind, bf16)), _update(config)
    )
    evaluation = _evaluation(config, kind, bf16)
    peak = _persistent(config) + max(step, evaluation)
    if kind == "cuda":
        if config.architecture == "decoder" and config.cuda_graph == "auto":
            peak += min(step, evaluation)  # a graph keeps its step's memory for itself
        return peak + _device_tokens(config) + CUDA_WORKSPACES_BYTES
    if kind != "cpu":
        return peak
    in_heap = sum(count * size for count, size in saved if size <= HEAP_BLOCK_BYTES)
    holes = math.sqrt(in_heap * HEAP_HOLES["bf16" if bf16 else "fp32"])
    if bf16:
        matrix = 4 * config.model.n_vocab * config.model.n_embd
        if matrix > HEAP_BLOCK_BYTES:
            matrix //= 2  # its bf16 copies may lie there
        holes += EMBEDDING_BLOCKS * matrix if matrix <= HEAP_BLOCK_BYTES else 0
    return CPU_PROCESS_BYTES + peak + round(holes)


def saved_blocks(config: RunConfig, kind: DeviceKind, bf16: bool) -> list[tuple[int, int]]:
    """(count, bytes each) of what the forward pass of one micro-batch keeps for the backward.

    Weights are not among them, their bf16 copies are.
    """
    shape = config.model
    D, H = shape.n_embd, shape.n_head
    N = config.batch_size * config.tokens_per_sequence
    low = 2 if bf16 else 4
    blocks: list[tuple[int, int]] = []
    for stack in _stacks(config):
        for count, size in _saved_by_block(config, stack, kind, bf16):
            blocks.append((stack.layers * count, size))
    rest = [(1, N * D * 4), (2, N * 4), (1, (N + config.batch_size) * 8)]
    if isinstance(shape, EncoderDecoderConfig):
        assert config.source_len is not None
        memory = config.batch_size * config.source_len
        # For each decoder block: the projections of the memory and their weights over it.
        scores = config.batch_size * H * config.seq_len * config.source_len
        cross = [(2, memory * D * low), (3, scores * 4), (12, D * D * low if bf16 else 0)]
        rest += [(shape.n_decoder_layer * count, size) for count, size in cross if size]
        queries = config.batch_size * config.seq_len * D
        rest += [(shape.n_decoder_layer * 4, queries * low), (shape.n_decoder_layer, queries * 4)]
    if shape.p_dropout > 0:
        rest += [(1, N * D * (1 if kind == "cuda" else 4))]
    return blocks + rest


class _Stack(NamedTuple):
    """One stack of blocks and what it works on."""

    layers: int
    length: int
    """Tokens of a sequence (S)."""
    masked: bool
    """Whether padding is masked, for which attention is written out."""


def _stacks(config: RunConfig) -> list[_Stack]:
    if isinstance(config.model, EncoderDecoderConfig):
        assert config.source_len is not None
        return [
            _Stack(config.model.n_encoder_layer, config.source_len, masked=True),
            _Stack(config.model.n_decoder_layer, config.seq_len, masked=False),
        ]
    return [_Stack(config.model.n_layer, config.seq_len, masked=False)]


def _saved_by_block(
    config: RunConfig, stack: _Stack, kind: DeviceKind, bf16: bool
) -> list[tuple[int, int]]:
    """What `saved_blocks` says, of one block of a stack."""
    shape = config.model
    D, H, S = shape.n_embd, shape.n_head, stack.length
    N = config.batch_size * S
    low = 2 if bf16 else 4
    dropout = shape.p_dropout > 0
    # With dropout PyTorch's CPU writes the weights out.
    flash = not stack.masked and (kind != "cpu" or not dropout)
    in_blocks = _in_blocks(config, stack, kind, bf16)
    wide_heads = bf16 and (dropout or shape.head_dim <= SLOW_CPU_HEAD_DIM) and kind == "cpu"
    mask = 1 if kind == "cuda" else low  # bytes of a dropout mask's element
    block = [
        (2, N * D * 4),  # residual stream before each LayerNorm
        (4, N * 4),  # mean and 1/deviation of each LayerNorm
        (3, N * D * low),  # inputs of the projections: two LayerNorms' outputs, the heads' outputs
        (2, N * shape.n_inner * low),  # feed-forward before and after GELU
    ]
    if in_blocks:
        # Decoders only: encoders mask their padding.
        weights = sum((end - start) * keys for start, end, keys in query_blocks(S, S, causal=True))
        block += [(3, N * D * low), (config.batch_size * H * weights, low)]
        block += [(config.batch_size * H * weights, 1)] if dropout else []
    elif flash:
        block += [(4 if wide_heads else 3, N * D * (4 if wide_heads else low)), (1, N * H * 4)]
    else:
        block += [(3, N * D * 4 if bf16 else N * D * low), (3, N * H * S * 4)]
    if bf16:
        block += [(12, D * D * low)]  # copies of all weights of the block
    else:
        block += [(1, 3 * D * D * 4)]  # the joined projections (model.attention)
    if dropout:
        block += [(2, N * D * mask)]
    if isinstance(shape, ModelConfig):
        if shape.qk_norm:
            block += [(2, N * D * low), (2, N * H * 4)]  # queries, keys before; what divides
        elif shape.positions == "rope" and not (in_blocks or wide_heads):
            block += [(2, N * D * low)]  # as before the rotation: values are views of the same
    return block


def _in_blocks(config: RunConfig, stack: _Stack, kind: DeviceKind, bf16: bool) -> bool:
    """Whether attention is that of `model.cpu.attention`."""
    pays = attends_in_blocks(stack.length, config.model.head_dim)
    return kind == "cpu" and bf16 and not stack.masked and pays


def _device_tokens(config: RunConfig) -> int:
    """The training text, which a decoder's run keeps on a GPU; 0 where its length is not known."""
    text = 2 * (config.data.train_tokens or 0) if config.architecture == "decoder" else 0
    return text if text <= LARGEST_TEXT_ON_DEVICE_BYTES else 0


def _persistent(config: RunConfig) -> int:
    """Parameters and the optimiser's state; with accumulation gradients outlive a micro-batch."""
    tensors = 1 + (config.grad_accumulation_steps > 1)
    return tensors * 4 * config.n_params + config.optimizer_kind.state_bytes(config.model)


def _loss(config: RunConfig, kind: DeviceKind, bf16: bool) -> int:
    """What the loss holds: one chunk of logits, the rows of the matrix, both gradients."""
    V, D = config.model.n_vocab, config.model.n_embd
    N = config.batch_size * config.predicted_per_sequence
    chunk = min(N, loss_chunk_tokens(V, kind))
    hidden = N * D * (4 + 4 + (2 if bf16 else 0))  # it, its gradient, its low-precision copy
    if config.head_samples is not None:
        K, chunk = config.head_samples, min(N, SAMPLED_CHUNK_TOKENS)
        low = 2 if bf16 else 4
        return hidden + 4 * V * D + K * D * (4 + low) + chunk * (K * (4 + 2 * low) + 16 * D)
    return hidden + (14 if bf16 else 12) * V * D + chunk * (V + 2 * D) * (2 if bf16 else 4)


def _backward(config: RunConfig, kind: DeviceKind, bf16: bool) -> int:
    """Beside the saved tensors: the head's gradient twice, one block's gradients."""
    shape = config.model
    blocks = []
    for stack in _stacks(config):
        if _in_blocks(config, stack, kind, bf16):  # a block's weights and scores, three of them
            attention = 6 * shape.n_head * min(stack.length, QUERY_BLOCK)
        else:
            written_out = stack.masked or (kind == "cpu" and shape.p_dropout > 0)
            attention = 4 * shape.n_head * stack.length if written_out else 0
        block = 4 * shape.n_embd + max(4 * shape.n_inner, attention)
        blocks.append(config.batch_size * stack.length * block)
    return 8 * shape.n_vocab * shape.n_embd + max(blocks)


def _update(config: RunConfig) -> int:
    """Gradients, where they are not counted yet, and the largest of what comes beside them.

    That is the embedding's two parts before their sum, or what the optimiser needs while it moves.
    """
    shape = config.model
    grads = 0 if config.grad_accumulation_steps > 1 else 4 * config.n_params
    moving = config.optimizer_kind.update_bytes(shape)
    return grads + max(8 * shape.n_vocab * shape.n_embd, moving)


def _evaluation(config: RunConfig, kind: DeviceKind, bf16: bool) -> int:
    """A validation batch: one block at a time, then one chunk of logits."""
    V, D, S = config.model.n_vocab, config.model.n_embd, max(2, config.tokens_per_sequence)
    N = max(config.batch_size, EVAL_TOKENS // S) * S
    low = 2 if bf16 else 4
    chunk = min(N, loss_chunk_tokens(V, kind))
    logits = 4 * V * D + chunk * V * low + N * D * 4
    return max(N * D * (8 + 8 * low), logits)
