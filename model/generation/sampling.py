"""From logits to a token: temperature, top-k, top-p, and the draw."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from budgetsweep.errors import CheckpointError
from model.config import SamplingConfig


def softmax_with_temperature(logits: Tensor, temperature: float) -> Tensor:
    """softmax(logits / temperature) of logits (B, V) over the last dimension, at least float32.

    Temperature 0 is greedy: all probability on the largest logit, on the first of equals.

    Raises:
        ValueError: the temperature is negative, infinite or not a number.
    """
    temperature = SamplingConfig(temperature=temperature).temperature
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if temperature == 0:
        return torch.zeros_like(logits).scatter_(-1, logits.argmax(dim=-1, keepdim=True), 1.0)
    # Neither the largest logit divided by a tiny number nor that number itself may overflow.
    below_top = logits - logits.amax(dim=-1, keepdim=True)
    return (below_top / max(temperature, torch.finfo(logits.dtype).tiny)).softmax(dim=-1)


def next_token_probabilities(logits: Tensor, sampling: SamplingConfig) -> Tensor:
    """What tokens are drawn from: (B, V), at least float32, each row adding up to top_p or more."""
    if sampling.top_k is not None and sampling.top_k < logits.shape[1]:
        kth = logits.topk(sampling.top_k, dim=1).values[:, -1:]
        logits = logits.masked_fill(logits < kth, -torch.inf)
    probabilities = softmax_with_temperature(logits, sampling.temperature)
    if sampling.top_p is None or sampling.top_p == 1.0:
        return probabilities
    ordered, order = probabilities.sort(dim=1, descending=True, stable=True)
    before = ordered.cumsum(dim=1) - ordered
    ordered = ordered.masked_fill(before >= sampling.top_p, 0.0)
    return torch.zeros_like(probabilities).scatter_(1, order, ordered)


def choose_tokens(logits: Tensor, sampling: SamplingConfig, draws: Tensor) -> list[int]:
    """One token for each row of logits (B, V), by inverting the cumulative distribution.

    `draws` (B,) are uniform numbers in [0, 1), on any device; not looked at when greedy.

    Raises:
        CheckpointError: a logit is NaN or +inf.
    """
    require_finite(logits)
    if sampling.temperature == 0:
        return logits.argmax(dim=1).tolist()
    wide = torch.float32 if logits.device.type == "mps" else torch.float64
    cumulative = next_token_probabilities(logits, sampling).to(wide).cumsum(dim=1)
    at = draws.to(logits.device, wide)[:, None] * cumulative[:, -1:]
    chosen = torch.searchsorted(cumulative, at, right=True)  # the first token that reaches past it
    return chosen.squeeze(1).clamp(max=logits.shape[1] - 1).tolist()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """No dropout and no gradients within; the mode of before comes back."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def require_finite(logits: Tensor) -> None:
    """Raise `CheckpointError` where the largest logit (B, V) of a row is NaN or infinite."""
    if not logits.amax(dim=1).isfinite().all():
        raise CheckpointError(
            "the model's logits of the next token are not finite: its weights are damaged, or its "
            "training diverged"
        )
