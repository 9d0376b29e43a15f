"""The blocks of a model, forward and backward, on one thread for each part of a batch's sequences.

A sequence never sees another, so the parts share nothing but the weights; their gradients are added
up in the order of the sequences, the same sum every time. Why threads of whole passes rather than
of single operations: `model.cpu.threads`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from model.cpu.threads import run_on_threads, team_size
from model.transformer import Transformer

LEAST_ELEMENTS = 1 << 16
"""Elements of the residual stream (tokens x width) from which on threads share a batch: below,
the interpreter decides, which serves one thread at a time."""


def hidden_by_rows(model: Transformer) -> Callable[[Tensor], Tensor]:
    """`model.hidden` of ids (B, S), with the blocks on several threads where that is right.

    It is not where there is one thread or too little to do, nor with dropout: its draws come from
    one generator, in an order that threads would not keep.
    """

    def hidden(input_ids: Tensor) -> Tensor:
        n = min(team_size(input_ids.device.type), len(input_ids))
        small = input_ids.numel() * model.shape.n_embd < LEAST_ELEMENTS
        draws = model.training and model.shape.p_dropout > 0
        if n == 1 or small or draws or not torch.is_grad_enabled():
            return model.hidden(input_ids)
        x = model.embed(input_ids)
        weights = [p for name, p in model.named_parameters() if name.startswith(("blocks.", "ln."))]
        out: Tensor = _Rows.apply(model.transform, n, x, *weights)  # type: ignore[no-untyped-call]
        return out

    return hidden


class _Rows(torch.autograd.Function):
    """`transform` of x (B, S, D) in n parts of the batch."""

    @staticmethod
    def forward(
        ctx: Any, transform: Callable[[Tensor], Tensor], n: int, x: Tensor, *weights: Tensor
    ) -> Tensor:
        kind = x.device.type
        low, dtype = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)

        def run(rows: Tensor) -> tuple[Tensor, Tensor]:
            """Some of the sequences, and what they give with the graph of their pass."""
            rows = rows.detach().requires_grad_()
            # The cache of autocast belongs to all threads, what it holds to one thread's graph.
            cast = torch.autocast(kind, dtype, enabled=low, cache_enabled=False)
            with torch.enable_grad(), cast:
                return rows, transform(rows)

        ctx.weights = weights
        ctx.parts = run_on_threads(run, x.tensor_split(n))
        return torch.cat([out.detach() for _, out in ctx.parts])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        def run(work: tuple[tuple[Tensor, Tensor], Tensor]) -> tuple[Tensor, ...]:
            (rows, out), mine = work
            return torch.autograd.grad(out, (rows, *ctx.weights), mine)

        parts, ctx.parts = ctx.parts, None
        grads = grad.tensor_split(len(parts))
        found = run_on_threads(run, list(zip(parts, grads, strict=True)))
        total = list(found[0][1:])
        for other in found[1:]:
            torch._foreach_add_(total, list(other[1:]))
        return None, None, torch.cat([each[0] for each in found]), *total
