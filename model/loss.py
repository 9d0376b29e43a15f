"""Cross-entropy of a linear head that never holds the logits of all tokens.

With V = 50257 the logits are by far the largest tensor of a training step. Here they exist for one
chunk of tokens at a time, and the gradients are computed in the same pass, so that nothing is
computed twice: three products a chunk (logits, gradient of the hidden states, of the matrix).

On a CPU the passes over the logits cost as much as the products. The probabilities are therefore
not normalised: with E = exp(logits) and row sums Z, the gradients are (E/Z - onehot) W and
(E/Z - onehot)ᵀ h, and 1/Z is applied to the narrow side of each product.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from model.chunks import loss_chunk_tokens

SAFE_LOGIT = 60.0
"""Largest |logit| for exp without subtracting the maximum: e^±60 times any vocabulary is far
inside the range of float32 and bfloat16."""

CACHED_LOGITS = 1 << 20
"""Logits of a chunk that elementwise passes touch at once on a CPU (2 to 4 MB)."""


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, chunk_tokens: int | None = None
) -> Tensor:
    """Mean cross-entropy of `hidden @ weight.T` against targets, in nats.

    Differentiable once, in hidden and weight. Under autocast the products run in its lower
    precision; exponentials and sums are evaluated in float32 and kept in the lower one between
    the products. torch.compile can trace it as one graph. A logit that is NaN or infinite makes
    the loss NaN.

    Args:
        hidden: (N, D) hidden states.
        weight: (V, D) the head's matrix.
        targets: (N,) int64 ids.
        chunk_tokens: tokens whose logits exist at once; None: `loss_chunk_tokens`.

    Returns:
        Scalar, float32 (float64 for float64 input).

    Raises:
        ValueError: the shapes do not fit together, or there is no token.
    """
    chunk = _checked_chunk(hidden, weight, targets, chunk_tokens)
    if not torch.is_grad_enabled():
        return token_losses(hidden, weight, targets, chunk).mean()
    loss: Tensor = _LinearCrossEntropy.apply(hidden, weight, targets, chunk)  # type: ignore[no-untyped-call]
    return loss


@torch.no_grad()
def token_losses(
    hidden: Tensor, weight: Tensor, targets: Tensor, chunk_tokens: int | None = None
) -> Tensor:
    """Cross-entropy of each token, (N,) nats, without gradients: for evaluation.

    Arguments and errors as in `linear_cross_entropy`; all of the softmax is in float32.
    """
    chunk = _checked_chunk(hidden, weight, targets, chunk_tokens)
    head = _prepare(hidden, weight, chunk)
    losses = torch.empty(len(targets), dtype=_wide(hidden.dtype), device=hidden.device)
    with torch.autocast(hidden.device.type, enabled=False):
        for part in _parts(len(targets), chunk):
            logits = head.logits(part)
            losses[part] = -logits.gather(1, targets[part, None]).squeeze(1).to(losses.dtype)
            blocks = _parts(len(logits), _rows_in_cache(logits))
            losses[part] += torch.cat([_log_sum_exp(logits[b], head.small) for b in blocks])
    return losses


def _log_sum_exp(logits: Tensor, small: bool) -> Tensor:
    wide = logits.to(_wide(logits.dtype))  # may be the buffer itself; nobody needs it any more
    if small:
        return wide.exp_().sum(dim=1).log_()
    top = wide.amax(dim=1, keepdim=True)
    return wide.sub_(top).exp_().sum(dim=1).log_() + top.squeeze(1)


def _rows_in_cache(logits: Tensor) -> int:
    """Rows of logits to pass over at once: on a CPU those that fit its cache, else all."""
    if logits.device.type != "cpu":
        return len(logits)
    return max(1, CACHED_LOGITS // logits.shape[1])


class _Head(NamedTuple):
    """The head, ready for products over chunks of tokens."""

    h: Tensor
    """(N, D) hidden states in the precision of the products."""
    w: Tensor
    """(V, D) matrix in the same precision."""
    wT: Tensor  # noqa: N815
    """(D, V), contiguous: without this copy oneDNN's bf16 product takes four times as long."""
    buffer: Tensor
    """(chunk, V), where the logits of every chunk are written."""
    small: bool
    """No logit can exceed SAFE_LOGIT."""

    def logits(self, part: slice) -> Tensor:
        h = self.h[part]
        return torch.mm(h, self.wT, out=self.buffer[: len(h)])


def _prepare(hidden: Tensor, weight: Tensor, chunk: int) -> _Head:
    kind = hidden.device.type
    dtype = hidden.dtype
    if torch.is_autocast_enabled(kind) and dtype != torch.float64:
        dtype = torch.get_autocast_dtype(kind)
    h, w = hidden.detach().to(dtype), weight.detach().to(dtype)
    buffer = torch.empty(min(chunk, len(h)), len(w), dtype=dtype, device=hidden.device)
    # |logit| <= |h| |w|. Asked on CPUs only: on a GPU the answer would stall the queue.
    small = (
        kind == "cpu"
        and not torch.compiler.is_compiling()
        and dtype != torch.float16
        and bool(_longest_row(hidden) * _longest_row(weight) <= SAFE_LOGIT)
    )
    return _Head(h, w, w.T.contiguous(), buffer, small)


def _longest_row(matrix: Tensor) -> Tensor:
    return torch.linalg.vector_norm(matrix.detach(), dim=1).max()


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _parts(n: int, chunk: int) -> Iterator[slice]:
    return (slice(start, start + chunk) for start in range(0, n, chunk))


def _checked_chunk(hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int | None) -> int:
    shapes_fit = (
        hidden.ndim == 2
        and weight.ndim == 2
        and hidden.shape[1] == weight.shape[1]
        and targets.shape == hidden.shape[:1]
    )
    if not shapes_fit or not len(targets):
        raise ValueError(
            f"hidden {tuple(hidden.shape)}, weight {tuple(weight.shape)}, targets "
            f"{tuple(targets.shape)}: expected (N, D), (V, D) and (N,) with N at least 1"
        )
    if chunk is None:
        return loss_chunk_tokens(len(weight), hidden.device.type)
    if chunk < 1:
        raise ValueError(f"chunk_tokens = {chunk}, expected at least 1")
    return chunk


class _LinearCrossEntropy(torch.autograd.Function):
    """Computes both gradients in forward, where each chunk's probabilities are at hand."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int) -> Tensor:
        n, wide = len(targets), _wide(hidden.dtype)
        head = _prepare(hidden, weight, chunk)
        rows = torch.arange(len(head.buffer), device=hidden.device)
        loss = torch.zeros((), dtype=wide, device=hidden.device)
        d_hidden = torch.empty_like(hidden, memory_format=torch.contiguous_format)
        d_weightT = torch.zeros(head.wT.shape, dtype=wide, device=hidden.device)
        with torch.autocast(hidden.device.type, enabled=False):
            for part in _parts(n, chunk):
                target = targets[part]
                here = rows[: len(target)]
                e = head.logits(part)
                right = e.gather(1, target[:, None]).squeeze(1).to(wide)
                if head.small:
                    blocks = _parts(len(e), _rows_in_cache(e))
                    z = torch.cat([e[block].exp_().sum(dim=1) for block in blocks]).to(wide)
                    log_z = z.log()
                else:
                    top, where = e.max(dim=1)
                    torch.softmax(e, dim=1, out=e)
                    log_z = top - e[here, where].to(wide).log()
                    z = torch.ones_like(right)
                loss += (log_z - right).sum()
                e[here, target] -= z.to(e.dtype)
                share = (1.0 / z)[:, None]
                d_hidden[part] = (e @ head.w).to(wide) * share
                scaledT = (hidden[part] * share).to(e.dtype).T.contiguous()
                if e.dtype == wide:
                    torch.addmm(d_weightT, scaledT, e, out=d_weightT)  # addmm_ is not counted
                else:
                    d_weightT += scaledT @ e
        ctx.n_tokens = n
        ctx.save_for_backward(d_hidden, d_weightT.T.to(weight.dtype).contiguous())
        return loss / n

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        d_hidden, d_weight = ctx.saved_tensors
        share = grad / ctx.n_tokens
        return d_hidden * share, d_weight * share, None, None
