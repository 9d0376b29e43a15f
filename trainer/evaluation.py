"""Validation: one sequential pass over the validation tokens."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from budgetsweep.errors import ConfigError, DataError
from model.decoder import DecoderLM
from model.encoder import EncoderLM
from model.encoder_decoder import EncoderDecoderLM
from model.generation.sampling import evaluating
from model.loss import token_losses

if TYPE_CHECKING:
    from trainer.data.shards.tokens import TokenArray

Model: TypeAlias = DecoderLM | EncoderLM | EncoderDecoderLM


@dataclass(frozen=True)
class Validation:
    """Result of one validation pass."""

    loss_nats: float
    """Mean cross-entropy per predicted token."""
    ppl: float
    """exp(loss_nats)."""
    bits_per_byte: float | None
    """Loss per byte of the validation text; None where the text's length is not known."""
    stderr_nats: float | None
    """Standard error of loss_nats from the spread between windows; None with one window."""
    n_tokens: int
    """Tokens that were predicted."""


def validate(
    model: DecoderLM,
    val: TokenArray | np.ndarray,
    *,
    seq_len: int,
    batch_size: int,
    device: torch.device | str,
    autocast: AbstractContextManager[Any],
    bytes_per_token: float | None,
) -> Validation:
    """Loss of `model` on the validation tokens, walked once in order, without dropout.

    The tokens are cut into windows of seq_len; each gives seq_len - 1 predictions. Every predicted
    token weighs the same, in the shorter last window and the smaller last batch too. The model's
    mode comes back.

    Args:
        batch_size: windows evaluated at once; decides memory, not the result.
        bytes_per_token: mean bytes of UTF-8 text per token, for bits_per_byte.

    Raises:
        ConfigError: seq_len is below 2.
        DataError: not even two tokens.
    """
    if seq_len < 2:
        raise ConfigError(f"seq_len = {seq_len}: a window to validate on needs at least 2 tokens")

    def predictions() -> Iterator[Predictions]:
        for ids in sequential_windows(val, seq_len, batch_size):
            inputs = torch.from_numpy(ids).to(device, non_blocking=True)
            hidden = model.hidden(inputs[:, :-1])
            rows = [ids.shape[1] - 1] * len(ids)
            yield Predictions(hidden.flatten(0, 1), inputs[:, 1:].flatten(), rows)

    too_few = (
        f"{len(val)} validation tokens are too few for one pass with seq_len = {seq_len}: "
        "prepare more validation text"
    )
    return validate_on(model, predictions(), autocast, too_few, bytes_per_token)


class Predictions(NamedTuple):
    """Of one validation batch: what the head sees, and what it should say."""

    hidden: Tensor
    """(N, D) at the predicted tokens, row after row."""
    targets: Tensor
    """(N,) their ids."""
    counts: list[int]
    """Predicted tokens of each row: a window or a pair, the independent sample."""


def validate_on(
    model: Model,
    batches: Iterator[Predictions],
    autocast: AbstractContextManager[Any],
    nothing: str,
    bytes_per_token: float | None = None,
) -> Validation:
    """Token-weighted loss over all batches, without dropout, each computed here under autocast.

    `bytes_per_token` is of a predicted token, for bits_per_byte.

    Raises:
        DataError: nothing is predicted; in these words.
    """
    losses: list[Tensor] = []
    counts: list[int] = []
    with evaluating(model), autocast:
        for hidden, targets, rows in batches:
            if len(targets):
                each = token_losses(hidden, model.head_weight, targets, bias=model.head_bias)
                losses.extend(_row_sums(each, rows))
                counts += [count for count in rows if count]
    if not counts:
        raise DataError(nothing)
    sums = torch.cat(losses).cpu().double().numpy()
    loss, stderr = ratio_estimate(sums, np.asarray(counts, dtype=np.float64))
    return Validation(
        loss_nats=loss,
        ppl=perplexity(loss),
        bits_per_byte=None if bytes_per_token is None else loss / math.log(2) / bytes_per_token,
        stderr_nats=stderr,
        n_tokens=sum(counts),
    )


def perplexity(loss_nats: float) -> float:
    """exp(loss); infinite where that is too large for a float."""
    return math.exp(loss_nats) if not loss_nats > 709.0 else math.inf


def ratio_estimate(sums: np.ndarray, counts: np.ndarray) -> tuple[float, float | None]:
    """Mean per token and its standard error, windows being the independent sample.

    Of the loss of each window, summed over its tokens (k,), and their number (k,): the linearised
    variance of a ratio of totals (Cochran 1977, eq. 6.13), k/(k-1) · Σ(sumᵢ - mean·countᵢ)² / (Σ
    countᵢ)²; None with fewer than two windows.
    """
    total = float(counts.sum())
    mean = float(sums.sum()) / total
    k = len(sums)
    if k < 2:
        return mean, None
    variance = k / (k - 1) * float(((sums - mean * counts) ** 2).sum()) / total**2
    return mean, math.sqrt(variance)


def _row_sums(losses: Tensor, counts: list[int]) -> Iterator[Tensor]:
    """Sums (rows,) of losses (N,), row after row; rows without a prediction are left out."""
    if len(set(counts)) == 1:
        yield losses.view(len(counts), -1).sum(dim=1, dtype=_sum_type(losses))
    else:
        for part in torch.split(losses, [count for count in counts if count]):
            yield part.sum(dtype=_sum_type(part))[None]


def _sum_type(losses: Tensor) -> torch.dtype:
    return losses.dtype if losses.device.type == "mps" else torch.float64


def sequential_windows(
    val: TokenArray | np.ndarray, seq_len: int, batch_size: int
) -> Iterator[np.ndarray]:
    """Arrays (b, s) of int64: full batches, then the last smaller batch, then the last window."""
    n_full = len(val) // seq_len
    for first in range(0, n_full, batch_size):
        rows = min(batch_size, n_full - first)
        ids = np.asarray(val[first * seq_len : (first + rows) * seq_len])
        yield ids.astype(np.int64).reshape(rows, seq_len)
    rest = len(val) - n_full * seq_len
    if rest >= 2:
        yield np.asarray(val[n_full * seq_len :]).astype(np.int64).reshape(1, rest)
