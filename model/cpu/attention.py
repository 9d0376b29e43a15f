"""Attention of bf16 heads on a CPU, written out as products for the processor's matrix unit.

PyTorch's own CPU kernel takes one head at a time and is, up to heads of 64, no faster in bf16 than
in float32. Here all heads of a block of queries are one batched product (AMX or AVX-512 BF16), and
what softmax needs is kept for the way back in place of being computed again.

Scores and weights are rounded to bf16 where the kernel has float32; the exponentials, their sums
and every product's sum are in float32. It is what GPT-2 in bf16 autocast does without a fused
kernel. The loss does not show it (docs/experiments.md).
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from model.cpu.block_sizes import query_blocks


def attend_in_blocks(
    q: Tensor, k: Tensor, v: Tensor, scale: float, p_dropout: float, causal: bool
) -> Tensor:
    """What `model.attention.attend` gives of bf16 heads on a CPU without padding, to 2⁻⁸.

    Queries q are (B, H, T, HD), keys k and values v (B, H, S, HD), the result (B, H, T, HD) in
    bf16. Differentiable once. Causal (query t sees keys 0 … t only) needs T = S.
    """
    out: Tensor = _Blocks.apply(q, k, v, scale, p_dropout, causal)  # type: ignore[no-untyped-call]
    return out


class _Blocks(torch.autograd.Function):
    """See `attend_in_blocks`."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float, p_dropout: float, causal: bool
    ) -> Tensor:
        ctx.heads, ctx.types = q.shape[1], (q.dtype, k.dtype, v.dtype)
        q, k, v = _by_head(q), _by_head(k), _by_head(v)
        seen, kept, out = [], [], []
        for start, end, keys in query_blocks(q.shape[1], k.shape[1], causal):
            scores = _product(q[:, start:end], k[:, :keys].mT, scale)
            if causal:
                scores[:, :, start:] += _future(end - start)
            weights = scores.softmax(dim=-1)
            seen.append(weights)
            if p_dropout > 0:
                weights, mask = torch.native_dropout(weights, p_dropout, train=True)
                kept.append(mask)
            out.append(weights @ v[:, :keys])
        ctx.save_for_backward(q, k, v, *seen, *kept)
        ctx.scale, ctx.p_dropout, ctx.causal = scale, p_dropout, causal
        return _by_token(_joined(out), ctx.heads, torch.bfloat16)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, *rest = ctx.saved_tensors
        blocks = query_blocks(q.shape[1], k.shape[1], ctx.causal)
        seen, kept = rest[: len(blocks)], rest[len(blocks) :]
        grad = _by_head(grad)
        dq: list[Tensor] = []
        dk = dv = q  # the first block that is met, the last one, sees all keys and sets them
        for number, (start, end, keys) in reversed(list(enumerate(blocks))):
            weights, above = seen[number], grad[:, start:end]
            d_weights = above @ v[:, :keys].mT
            used = weights
            if kept:
                used, d_weights = (
                    (each * kept[number]).mul_(1 / (1 - ctx.p_dropout))
                    for each in (weights, d_weights)
                )
            d_scores = torch.ops.aten._softmax_backward_data(d_weights, weights, -1, q.dtype)
            dq.insert(0, _product(d_scores, k[:, :keys], ctx.scale))
            if end == q.shape[1]:
                dk = _product(d_scores.mT, q[:, start:end], ctx.scale)
                dv = used.mT @ above
            else:
                dk[:, :keys].baddbmm_(d_scores.mT, q[:, start:end], alpha=ctx.scale)
                dv[:, :keys].baddbmm_(used.mT, above)
        found = zip((_joined(dq), dk, dv), ctx.types, strict=True)
        return *(_by_token(each, ctx.heads, dtype) for each, dtype in found), None, None, None


def _product(left: Tensor, right: Tensor, factor: float) -> Tensor:
    """`factor * left @ right` of batches, rounded once."""
    shape = (left.shape[0], left.shape[1], right.shape[2])
    return torch.baddbmm(left.new_empty(shape), left, right, beta=0, alpha=factor)


def _joined(blocks: list[Tensor]) -> Tensor:
    return blocks[0] if len(blocks) == 1 else torch.cat(blocks, dim=1)


def _by_head(x: Tensor) -> Tensor:
    """(B, H, T, HD) to bf16 (B·H, T, HD) without gaps."""
    return x.to(torch.bfloat16, memory_format=torch.contiguous_format).flatten(0, 1)


def _by_token(x: Tensor, heads: int, dtype: torch.dtype) -> Tensor:
    """(B·H, T, HD) to (B, H, T, HD) of a type, a token's heads side by side in memory."""
    x = x.view(-1, heads, *x.shape[1:]).transpose(1, 2)
    return x.to(dtype, memory_format=torch.contiguous_format).contiguous().transpose(1, 2)


@functools.cache
def _future(length: int) -> Tensor:
    """To be added to scores: -inf where key s > query t, bf16 (length, length)."""
    return torch.full((length, length), -math.inf, dtype=torch.bfloat16).triu(1)
