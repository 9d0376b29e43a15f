"""Sampled softmax: cross-entropy over K entries of the vocabulary instead of V.

With V = 50257 most of a small model's training FLOPs are logits of tokens that nobody would have
expected. Here the sum over the vocabulary in log Z = log Σ exp(logit) is estimated: the target
counts as it is, and of all others the K entries that were drawn beforehand, the same for all tokens
of a batch, entry v with probability π(v) and therefore with weight 1/π(v) (Horvitz & Thompson
1952). The estimate of Z is unbiased, that of the loss a little too low (Jensen); with all drawn it
is the full loss. Frequent entries are always drawn, so what is estimated is the tail.

The correction of Jean et al. (2015), in which the target's logit is lowered by log π too, trains as
well (docs/experiments.md), but its value is that of an easier question: here a training curve can
be read beside a validation loss, for which all logits are computed.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from model.cpu.block_sizes import SAMPLED_CHUNK_TOKENS
from model.loss import require_fitting, times


class VocabularySample(NamedTuple):
    """Vocabulary entries that all tokens of a batch are compared with."""

    entries: Tensor
    """(K,) int64, ascending, none twice."""
    log_inclusion: Tensor
    """(V,) float32, log π(v): how likely each entry of the vocabulary was to be drawn."""


def sampled_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    sample: VocabularySample,
    bias: Tensor | None = None,
    chunk_tokens: int = SAMPLED_CHUNK_TOKENS,
) -> Tensor:
    """Mean cross-entropy of `hidden @ weight.T + bias` against targets, estimated, in nats.

    Arguments, result and errors as in `model.loss.linear_cross_entropy`; under autocast all but the
    products is in float32. `sample` is what the targets are compared with.
    """
    require_fitting(hidden, weight, targets, bias)
    drawn, chances = tuple(sample.entries.shape), tuple(sample.log_inclusion.shape)
    if len(drawn) != 1 or not drawn[0] or chances != tuple(weight.shape[:1]):
        raise ValueError(
            f"{drawn} entries drawn with chances {chances}: expected (K,) with K at least 1 and "
            f"(V,) with V = {len(weight)}"
        )
    loss: Tensor = _SampledCrossEntropy.apply(  # type: ignore[no-untyped-call]
        hidden, weight, targets, sample, bias, chunk_tokens
    )
    return loss


class _SampledCrossEntropy(torch.autograd.Function):
    """Computes both gradients in forward, where each chunk's probabilities are at hand."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        sample: VocabularySample,
        bias: Tensor | None,
        chunk: int,
    ) -> Tensor:
        kind, wide = hidden.device.type, torch.promote_types(hidden.dtype, torch.float32)
        low = hidden.dtype
        if torch.is_autocast_enabled(kind) and low != torch.float64:
            low = torch.get_autocast_dtype(kind)
        entries = sample.entries
        rows = weight.detach()[entries].to(low)
        shift = -sample.log_inclusion[entries].to(wide)
        if bias is not None:
            bias = bias.to(wide)
            shift += bias[entries]
        loss = torch.zeros((), dtype=wide, device=hidden.device)
        d_hidden = torch.empty_like(hidden, memory_format=torch.contiguous_format)
        d_rows = torch.zeros(rows.shape, dtype=wide, device=hidden.device)
        d_weight = torch.zeros(weight.shape, dtype=wide, device=hidden.device)
        share = 1.0 / len(targets)
        with torch.autocast(kind, enabled=False):
            for start in range(0, len(targets), chunk):
                part = slice(start, start + chunk)
                target, h = targets[part], hidden.detach()[part]
                h_low, here = h.to(low), torch.arange(len(target), device=hidden.device)
                own = weight.detach()[target]
                right = (h.to(wide) * own.to(wide)).sum(dim=1)
                if bias is not None:
                    right += bias[target]
                logits = torch.mm(h_low, rows.T).to(wide).add_(shift)
                # A target that was drawn too is one candidate, not two.
                place = torch.searchsorted(entries, target).clamp_(max=len(entries) - 1)
                logits[here, place] = logits[here, place].masked_fill(
                    entries[place] == target, -torch.inf
                )
                top = torch.maximum(logits.amax(dim=1), right)
                e = logits.sub_(top[:, None]).exp_()
                own_e = (right - top).exp()
                z = e.sum(dim=1) + own_e
                loss += (top + z.log() - right).sum()
                p = e.div_(z[:, None]).to(low)
                missing = (own_e / z - 1.0)[:, None]
                d_hidden[part] = (torch.mm(p, rows).to(wide) + missing * own) * share
                d_rows += torch.mm(p.T, h_low)
                _add_rows(d_weight, target, missing * h.to(wide) * share)
        _add_rows(d_weight, entries, d_rows.mul_(share))
        ctx.save_for_backward(d_hidden, d_weight.to(weight.dtype))
        return loss * share

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        d_hidden, d_weight = times(grad, ctx.saved_tensors)
        return d_hidden, d_weight, None, None, None, None


def _add_rows(matrix: Tensor, at: Tensor, rows: Tensor) -> None:
    """Add rows (n, D) to those of matrix (V, D) that `at` (n,) names, the same sum every time."""
    if matrix.device.type == "cpu":
        matrix.index_add_(0, at, rows)
    else:  # index_add_ adds in any order there
        matrix.index_put_((at,), rows, accumulate=True)
