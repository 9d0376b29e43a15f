"""How many steps suffice: from which one on a loss was as good as at its end."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from studies.diagnosis.curves import Curve, FloatArray

CLOSE_NATS = 0.02
"""`Enough` means: within this of the last loss (seeds alone differ by 0.01 nats and more)."""

FEWEST_VAL = 5


@dataclass(frozen=True)
class StepsNeeded:
    """How many steps suffice."""

    series: str
    """`validation` or `training` (smoothed): which loss was looked at."""
    last_step: int
    last_nats: float
    close_nats: float
    """`CLOSE_NATS`, or twice the standard error of a smoothed training loss."""
    enough_step: int
    """From here on the loss stays within `close_nats` of the last one, or below."""


def steps_needed(curve: Curve) -> StepsNeeded | None:
    """How many steps suffice; None with fewer than three points of a loss."""
    series, steps, measured = _series(curve)
    if steps.size < 3:
        return None
    losses, close = measured, CLOSE_NATS
    if series == "training":
        losses, half = smoothed(measured), _half_window(measured.size)
        noise = np.diff(measured[measured.size // 2 :]).std() / np.sqrt(2 * (half + 1))
        close = max(close, 2 * float(noise))
    above = np.flatnonzero(losses > losses[-1] + close)
    first = int(above[-1]) + 1 if above.size else 0
    return StepsNeeded(
        series=series,
        last_step=int(steps[-1]),
        last_nats=float(losses[-1]),
        close_nats=close,
        enough_step=int(steps[first]),
    )


def _series(curve: Curve) -> tuple[str, FloatArray, FloatArray]:
    """Validation where it was measured often enough, else the training loss."""
    known = np.isfinite(curve.val_loss_nats) & (curve.step > 0)
    if known.sum() >= FEWEST_VAL:
        return "validation", curve.step[known], curve.val_loss_nats[known]
    known = np.isfinite(curve.train_loss_nats) & (curve.step > 0)
    return "training", curve.step[known], curve.train_loss_nats[known]


def smoothed(values: FloatArray) -> FloatArray:
    """Running mean over a tenth of the points (1 to 9), centred, one-sided at the ends."""
    half = _half_window(values.size)
    if half == 0:
        return values
    sums = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(values.size)
    first, last = np.maximum(index - half, 0), np.minimum(index + half + 1, values.size)
    return (sums[last] - sums[first]) / (last - first)


def _half_window(size: int) -> int:
    return min(4, size // 20)


def steps_sentences(steps: StepsNeeded | None) -> list[str]:
    """In words: when the loss was as good as at its end."""
    if steps is None:
        return []
    return [
        f"The {steps.series} loss stayed within {steps.close_nats:.2g} nats of its last value "
        f"({steps.last_nats:.3f}) from step {steps.enough_step:,} of {steps.last_step:,} on."
    ]
