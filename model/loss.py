"""Cross-entropy of a linear head that never holds the logits of all tokens.

With V = 50257 the logits are by far the largest tensor of a training step. Here they exist for one
chunk of tokens at a time; the gradients are computed in the same pass, so that nothing is computed
twice (three products a chunk: logits, gradient of the hidden states, gradient of the matrix).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from model.chunks import loss_chunk_tokens


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, chunk_tokens: int | None = None
) -> Tensor:
    """Mean cross-entropy of `hidden @ weight.T` against targets, in nats.

    Under autocast the products run in its lower precision, the softmax in float32.

    Args:
        hidden: (N, D) hidden states.
        weight: (V, D) the head's matrix.
        targets: (N,) int64 ids.
        chunk_tokens: tokens whose logits exist at once; None: `loss_chunk_tokens(V)`.

    Returns:
        Scalar, float32 (float64 for float64 input).
    """
    chunk = chunk_tokens or loss_chunk_tokens(weight.shape[0])
    if not torch.is_grad_enabled():
        return token_losses(hidden, weight, targets, chunk).mean()
    loss: Tensor = _LinearCrossEntropy.apply(hidden, weight, targets, chunk)  # type: ignore[no-untyped-call]
    return loss


@torch.no_grad()
def token_losses(
    hidden: Tensor, weight: Tensor, targets: Tensor, chunk_tokens: int | None = None
) -> Tensor:
    """Cross-entropy of each token, (N,) nats, without gradients; arguments as above."""
    chunk = chunk_tokens or loss_chunk_tokens(weight.shape[0])
    h, w, accumulate = _cast(hidden, weight)
    losses = torch.empty(len(targets), dtype=accumulate, device=hidden.device)
    with torch.autocast(hidden.device.type, enabled=False):
        for start in range(0, len(targets), chunk):
            part = slice(start, start + chunk)
            logits = (h[part] @ w.T).to(accumulate)
            right = logits.gather(1, targets[part, None]).squeeze(1)
            losses[part] = logits.logsumexp(dim=1) - right
    return losses


def _cast(hidden: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, torch.dtype]:
    """Inputs in the precision of the products, and the precision of sums."""
    kind = hidden.device.type
    accumulate = torch.promote_types(hidden.dtype, torch.float32)
    if torch.is_autocast_enabled(kind) and accumulate == torch.float32:
        low = torch.get_autocast_dtype(kind)
        return hidden.to(low), weight.to(low), accumulate
    return hidden, weight.to(hidden.dtype), accumulate


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int) -> Tensor:
        h, w, accumulate = _cast(hidden, weight)
        n = len(targets)
        loss = torch.zeros((), dtype=accumulate, device=hidden.device)
        d_hidden = torch.empty(hidden.shape, dtype=accumulate, device=hidden.device)
        d_weight = torch.zeros(weight.shape, dtype=accumulate, device=hidden.device)
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, n, chunk):
                part = slice(start, start + chunk)
                logits = (h[part] @ w.T).to(accumulate)
                target = targets[part, None]
                right = logits.gather(1, target).squeeze(1)
                lse = logits.logsumexp(dim=1)
                loss += (lse - right).sum()
                probabilities = logits.sub_(lse[:, None]).exp_()
                probabilities.scatter_add_(1, target, torch.full_like(target, -1, dtype=accumulate))
                g = probabilities.to(h.dtype)
                d_hidden[part] = g @ w
                d_weight += g.T @ h[part]
        ctx.save_for_backward(d_hidden.div_(n).to(hidden.dtype), d_weight.div_(n).to(weight.dtype))
        return loss / n

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        d_hidden, d_weight = ctx.saved_tensors
        return d_hidden * grad, d_weight * grad, None, None
