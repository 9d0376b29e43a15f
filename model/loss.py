"""Cross-entropy of a linear head that never holds the logits of all tokens.

With V = 50257 the logits are by far the largest tensor of a training step. Here they exist for one
chunk of tokens at a time, and the gradients are computed in the same pass, so that nothing is
computed twice: three products per chunk (logits, gradient of the hidden states, of the matrix).

On a CPU the passes over the logits cost as much as the products. The probabilities are therefore
not normalised: with E = exp(logits) and row sums Z, the gradients are (E/Z - onehot) W and
(E/Z - onehot)ᵀ h, and 1/Z is applied to the narrow side of each product. A bias becomes a factor
of E there: adding it in the product (`addmm`) triples the time of that product in bf16.

Several threads share the vocabulary there, each with rows of the matrix of its own, and exchange
but the sums of their exponentials (`model.cpu.threads`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from model.cpu.block_sizes import loss_chunk_tokens
from model.cpu.threads import run_on_threads, team_size

SAFE_LOGIT = 60.0
"""Largest |logit| for exp without subtracting the maximum: e^±60 times any vocabulary is far
inside the range of float32 and bfloat16."""

CACHED_LOGITS = 1 << 20
"""Logits of a chunk that elementwise passes touch at once on a CPU (2 to 4 MB)."""

LEAST_SHARED_LOGITS = 1 << 22
"""Logits of a batch from which on the vocabulary is shared among threads."""


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
        bias: (V,) added to the logits of every token.

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
    shares = _prepare(hidden, weight, targets, chunk, bias)
    losses = torch.empty(len(targets), dtype=_wide(hidden.dtype), device=hidden.device)
    with torch.autocast(hidden.device.type, enabled=False):
        for part in _parts(len(targets), chunk):
            found = run_on_threads(_log_sum, shares, part)
            logs, rights = (torch.stack(each) for each in zip(*found, strict=True))
            losses[part] = logs.logsumexp(0) - rights.sum(0)
    return losses


def _log_sum(share: _Share, part: slice) -> tuple[Tensor, Tensor]:
    """Of a chunk: log Σ exp(logit) over the share's entries, and the target's logit or 0."""
    logits = share.logits(part)
    right = share.target_logits(logits, part)
    blocks = _parts(len(logits), _rows_in_cache(logits))
    return torch.cat([_log_sum_exp(logits[block], share) for block in blocks]), right


def _log_sum_exp(logits: Tensor, share: _Share) -> Tensor:
    wide = logits.to(_wide(logits.dtype))  # may be the buffer itself; nobody needs it any more
    if share.bias is not None:
        wide = wide.add_(share.bias)
    if share.small:
        return wide.exp_().sum(dim=1).log_()
    top = wide.amax(dim=1, keepdim=True)
    return wide.sub_(top).exp_().sum(dim=1).log_() + top.squeeze(1)


def _rows_in_cache(matrix: Tensor) -> int:
    """Rows of a matrix to pass over at once: on a CPU those that fit its cache, else all."""
    if matrix.device.type != "cpu":
        return len(matrix)
    return max(1, CACHED_LOGITS // matrix.shape[1])


class _Share:
    """The head for some entries of the vocabulary, ready for products over chunks of tokens."""

    def __init__(
        self, h: Tensor, weight: Tensor, targets: Tensor, first: int, chunk: int, small: bool
    ) -> None:
        self.h = h
        """(N, D) hidden states in the precision of the products."""
        self.w = weight.to(h.dtype)
        """(V', D) rows of the matrix in the same precision; they begin with entry `first`."""
        self.wT = self.w.T.contiguous()
        """(D, V'), contiguous: without this copy oneDNN's bf16 product takes four times as long."""
        self.buffer = h.new_empty(chunk, len(weight))
        """Where the logits of every chunk are written."""
        self.small = small
        """No logit can exceed SAFE_LOGIT."""
        self.bias: Tensor | None = None
        """(V',) to add to the logits, in float32 or wider."""
        self.targets, self.first = targets, first
        self.rows = torch.arange(chunk, device=h.device)
        self.whole = True
        """The share is all of the vocabulary."""

    def logits(self, part: slice) -> Tensor:
        """Logits of a chunk, without the bias."""
        h = self.h[part]
        return torch.mm(h, self.wT, out=self.buffer[: len(h)])

    def own(self, part: slice) -> tuple[Tensor, Tensor]:
        """Tokens of a chunk whose targets are among these entries, and their columns."""
        targets = self.targets[part]
        if self.whole:
            return self.rows[: len(targets)], targets
        columns = targets - self.first
        rows = ((columns >= 0) & (columns < len(self.w))).nonzero().squeeze(1)
        return rows, columns[rows]

    def target_logits(self, logits: Tensor, part: slice) -> Tensor:
        """The targets' logits, with the bias; 0 where the target is another share's."""
        rows, columns = self.own(part)
        right = logits.gather(1, columns[:, None]) if self.whole else logits[rows, columns]
        right = right.reshape(-1).to(_wide(logits.dtype))
        if self.bias is not None:
            right += self.bias[columns]
        return right if self.whole else right.new_zeros(len(logits)).index_copy_(0, rows, right)


def _prepare(
    hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int, bias: Tensor | None
) -> list[_Share]:
    """The head of the whole vocabulary, a share for each thread of a team."""
    kind = hidden.device.type
    dtype = hidden.dtype
    if torch.is_autocast_enabled(kind) and dtype != torch.float64:
        dtype = torch.get_autocast_dtype(kind)
    h, w = hidden.detach().to(dtype), weight.detach()
    if bias is not None:
        bias = bias.detach().to(_wide(dtype))
    # |logit| <= |h| |w| + |b|. Asked on CPUs only: on a GPU the answer would stall the queue.
    small = (
        kind == "cpu"
        and not torch.compiler.is_compiling()
        and bool(_largest_logit(hidden, weight, bias) <= SAFE_LOGIT)
    )
    n_shares = team_size(kind) if small and len(h) * len(w) >= LEAST_SHARED_LOGITS else 1
    if n_shares > 1 and not 0 <= int(targets.min()) <= int(targets.max()) < len(w):
        raise IndexError(f"a target is not among the {len(w)} entries of the vocabulary")

    def share(rows: slice) -> _Share:
        made = _Share(h, w[rows], targets, rows.start, min(chunk, len(h)), small)
        made.whole = n_shares == 1
        made.bias = None if bias is None else bias[rows]
        return made

    size = -(-len(w) // n_shares // 64) * 64 if n_shares > 1 else len(w)
    return run_on_threads(share, list(_parts(len(w), size)))


def _largest_logit(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A bound of |logit|: nothing is larger."""
    h, w = (torch.linalg.vector_norm(m.detach(), dim=1).max() for m in (hidden, weight))
    return h * w if bias is None else h * w + bias.abs().max()


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _parts(n: int, chunk: int) -> Iterator[slice]:
    return (slice(start, start + chunk) for start in range(0, n, chunk))


def require_fitting(hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None) -> None:
    """Raise `ValueError` for shapes that do not fit together, or no token."""
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


def _checked_chunk(
    hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int | None, bias: Tensor | None
) -> int:
    require_fitting(hidden, weight, targets, bias)
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
        loss = torch.zeros((), dtype=wide, device=hidden.device)
        d_hidden = torch.empty_like(hidden, memory_format=torch.contiguous_format)
        d_weight = torch.empty_like(weight, memory_format=torch.contiguous_format)
        shares = _prepare(hidden, weight, targets, chunk, bias)
        low, small = shares[0].h.dtype, shares[0].small
        with torch.autocast(hidden.device.type, enabled=False):
            gradients = [_Gradients(share, wide) for share in shares]
            for part in _parts(n, chunk):
                sums = run_on_threads(_Gradients.exponentials, gradients, part)
                z, log_z, right = (sum(each[1:], each[0]) for each in zip(*sums, strict=True))
                if small:
                    log_z = z.log()
                loss += (log_z - right).sum()
                inverse = (1.0 / z)[:, None]
                scaledT = (hidden[part] * (inverse * (1.0 / n))).to(low).T.contiguous()
                products = run_on_threads(_Gradients.products, gradients, part, z, scaledT)
                torch.mul(sum(products[1:], products[0]), inverse / n, out=d_hidden[part])
            run_on_threads(_Gradients.write, gradients, d_weight)
        ctx.save_for_backward(d_hidden, d_weight)
        return loss / n

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        d_hidden, d_weight = times(grad, ctx.saved_tensors)
        return d_hidden, d_weight, None, None, None


def times(grad: Tensor, gradients: Sequence[Tensor]) -> Sequence[Tensor]:
    """Gradients of a loss times that of what it went into, a scalar."""
    # It is 1 in most steps; asking a GPU for it would stall the queue.
    if grad.device.type == "cpu" and not torch.compiler.is_compiling() and float(grad) == 1.0:
        return gradients
    return [each * grad for each in gradients]


class _Gradients:
    """What one share of the vocabulary adds to the loss and its gradients."""

    def __init__(self, share: _Share, wide: torch.dtype) -> None:
        self.share, self.wide = share, wide
        self.factor = None if share.bias is None else share.bias.exp().to(share.h.dtype)
        self.d_weightT = torch.zeros(share.wT.shape, dtype=wide, device=share.wT.device)
        self.product = None if share.h.dtype == wide else torch.empty_like(share.wT)

    def exponentials(self, part: slice) -> tuple[Tensor, Tensor, Tensor]:
        """Make a chunk's exponentials; their sums, logs of them, and the targets' logits.

        Where logits can be large, the exponentials are probabilities, the sums 1 and the logs
        those of the true sums.
        """
        share = self.share
        self.e = e = share.logits(part)
        right = share.target_logits(e, part)
        if share.small:
            blocks = _parts(len(e), _rows_in_cache(e))
            z = torch.cat([_exp_sums(e[block], self.factor) for block in blocks]).to(self.wide)
            return z, z, right
        if share.bias is not None:
            e += share.bias
        top, where = e.max(dim=1)
        torch.softmax(e, dim=1, out=e)
        log_z = top - e[share.rows[: len(e)], where].to(self.wide).log()
        return torch.ones_like(right), log_z, right

    def products(self, part: slice, z: Tensor, scaledT: Tensor) -> Tensor:
        """Add to the matrix's gradient; the hidden states' of a chunk, times z."""
        e, (rows, columns) = self.e, self.share.own(part)
        e[rows, columns] -= z.to(e.dtype)[rows]
        if self.product is None:
            torch.addmm(self.d_weightT, scaledT, e, out=self.d_weightT)  # addmm_ is not counted
        else:
            torch.mm(scaledT, e, out=self.product)
            for block in _parts(len(scaledT), _rows_in_cache(e)):
                self.d_weightT[block] += self.product[block]
        return (e @ self.share.w).to(self.wide)

    def write(self, d_weight: Tensor) -> None:
        """Put what was added up into these rows of the matrix's gradient."""
        rows = slice(self.share.first, self.share.first + len(self.share.w))
        d_weight[rows].copy_(self.d_weightT.T)


def _exp_sums(logits: Tensor, factor: Tensor | None) -> Tensor:
    """Turn logits (n, V) into exponentials times factor (V,), in place; their sums (n,)."""
    e = logits.exp_()
    if factor is not None:
        e *= factor
    return e.sum(dim=1)
