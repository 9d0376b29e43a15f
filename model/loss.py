"""Cross-entropy of a linear head that never holds the logits of all tokens.

With V = 50257 the logits are by far the largest tensor of a training step. Here they exist for one
chunk of tokens at a time, and the gradients are computed in the same pass, so that nothing is
computed twice: three products a chunk (logits, gradient of the hidden states, of the matrix).

On a CPU the passes over the logits cost as much as the products. The probabilities are therefore
not normalised: with E = exp(logits) and row sums Z, the gradients are (E/Z - onehot) W and
(E/Z - onehot)ᵀ h, and 1/Z is applied to the narrow side of each product. A bias becomes a factor
of E there: adding it in the product (`addmm`) triples the time of that product in bf16.
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
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    chunk_tokens: int | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """Mean cross-entropy of `hidden @ weight.T + bias` against targets, in nats.

    Differentiable once, in hidden and weight; the bias is a constant. Under autocast the products
    run in its lower precision; exponentials and sums are evaluated in float32 and kept in the lower
    one between the products. torch.compile can trace it as one graph. A logit that is NaN or
    infinite makes the loss NaN.

    Args:
        hidden: (N, D) hidden states.
        weight: (V, D) the head's matrix.
        targets: (N,) int64 ids.
        chunk_tokens: tokens whose logits exist at once; None: `loss_chunk_tokens`.
        bias: (V,) added to the logits of every token; None: nothing.

    Returns:
        Scalar, float32 (float64 for float64 input).

    Raises:
        ValueError: the shapes do not fit together, or there is no token.
    """
    chunk = _checked_chunk(hidden, weight, targets, chunk_tokens, bias)
    if not torch.is_grad_enabled():
        return token_losses(hidden, weight, targets, chunk, bias).mean()
    loss: Tensor = _LinearCrossEntropy.apply(hidden, weight, targets, chunk, bias)  # type: ignore[no-untyped-call]
    return loss


@torch.no_grad()
def token_losses(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    chunk_tokens: int | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """Cross-entropy of each token, (N,) nats, without gradients: for evaluation.

    Arguments and errors as in `linear_cross_entropy`; all of the softmax is in float32.
    """
    chunk = _checked_chunk(hidden, weight, targets, chunk_tokens, bias)
    head = _prepare(hidden, weight, chunk, bias)
    losses = torch.empty(len(targets), dtype=_wide(hidden.dtype), device=hidden.device)
    with torch.autocast(hidden.device.type, enabled=False):
        for part in _parts(len(targets), chunk):
            logits = head.logits(part)
            losses[part] = -head.target_logits(logits, targets[part])
            blocks = _parts(len(logits), _rows_in_cache(logits))
            losses[part] += torch.cat([_log_sum_exp(logits[b], head) for b in blocks])
    return losses


def _log_sum_exp(logits: Tensor, head: _Head) -> Tensor:
    wide = logits.to(_wide(logits.dtype))  # may be the buffer itself; nobody needs it any more
    if head.bias is not None:
        wide = wide.add_(head.bias)
    if head.small:
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
    bias: Tensor | None
    """(V,) to add to the logits, in float32 or wider."""

    def logits(self, part: slice) -> Tensor:
        """Logits of a chunk, without the bias."""
        h = self.h[part]
        return torch.mm(h, self.wT, out=self.buffer[: len(h)])

    def target_logits(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The targets' logits, with the bias."""
        right = logits.gather(1, targets[:, None]).squeeze(1).to(_wide(logits.dtype))
        return right if self.bias is None else right + self.bias[targets]


def _prepare(hidden: Tensor, weight: Tensor, chunk: int, bias: Tensor | None) -> _Head:
    kind = hidden.device.type
    dtype = hidden.dtype
    if torch.is_autocast_enabled(kind) and dtype != torch.float64:
        dtype = torch.get_autocast_dtype(kind)
    h, w = hidden.detach().to(dtype), weight.detach().to(dtype)
    buffer = torch.empty(min(chunk, len(h)), len(w), dtype=dtype, device=hidden.device)
    if bias is not None:
        bias = bias.detach().to(_wide(dtype))
    # |logit| <= |h| |w| + |b|. Asked on CPUs only: on a GPU the answer would stall the queue.
    small = (
        kind == "cpu"
        and not torch.compiler.is_compiling()
        and dtype != torch.float16
        and bool(_largest_logit(hidden, weight, bias) <= SAFE_LOGIT)
    )
    return _Head(h, w, w.T.contiguous(), buffer, small, bias)


def _largest_logit(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A bound of |logit|: nothing is larger."""
    h, w = (torch.linalg.vector_norm(m.detach(), dim=1).max() for m in (hidden, weight))
    return h * w if bias is None else h * w + bias.abs().max()


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _parts(n: int, chunk: int) -> Iterator[slice]:
    return (slice(start, start + chunk) for start in range(0, n, chunk))


def _checked_chunk(
    hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int | None, bias: Tensor | None
) -> int:
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
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias {tuple(bias.shape)}, expected (V,) with V = {len(weight)}")
    if chunk is None:
        return loss_chunk_tokens(len(weight), hidden.device.type)
    if chunk < 1:
        raise ValueError(f"chunk_tokens = {chunk}, expected at least 1")
    return chunk


class _LinearCrossEntropy(torch.autograd.Function):
    """Computes both gradients in forward, where each chunk's probabilities are at hand."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        chunk: int,
        bias: Tensor | None,
    ) -> Tensor:
        n, wide = len(targets), _wide(hidden.dtype)
        head = _prepare(hidden, weight, chunk, bias)
        factor = None if head.bias is None else head.bias.exp().to(head.h.dtype)
        rows = torch.arange(len(head.buffer), device=hidden.device)
        loss = torch.zeros((), dtype=wide, device=hidden.device)
        d_hidden = torch.empty_like(hidden, memory_format=torch.contiguous_format)
        d_weightT = torch.zeros(head.wT.shape, dtype=wide, device=hidden.device)
        with torch.autocast(hidden.device.type, enabled=False):
            for part in _parts(n, chunk):
                target = targets[part]
                here = rows[: len(target)]
                e = head.logits(part)
                right = head.target_logits(e, target)
                if head.small:
                    blocks = _parts(len(e), _rows_in_cache(e))
                    z = torch.cat([_exp_sums(e[block], factor) for block in blocks]).to(wide)
                    log_z = z.log()
                else:
                    if head.bias is not None:
                        e += head.bias
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
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        d_hidden, d_weight = ctx.saved_tensors
        share = grad / ctx.n_tokens
        return d_hidden * share, d_weight * share, None, None, None


def _exp_sums(logits: Tensor, factor: Tensor | None) -> Tensor:
    """Turn logits (n, V) into exponentials times factor (V,), in place; their sums (n,)."""
    e = logits.exp_()
    if factor is not None:
        e *= factor
    return e.sum(dim=1)
