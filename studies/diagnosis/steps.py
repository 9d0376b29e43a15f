"""How many steps suffice: when a loss was as good as at its end, and what twice the steps bring.

The first is read off the curve. The second is a fit of L(t) = E + A · t^-a (t: optimiser steps) to
the part after the first descent. For each exponent a of a grid, E and A follow by linear least
squares; the exponents whose squared error is within the F bound of the best one make an interval
(a profile likelihood, Bates and Watts 1988, section 6.1), over which the gain
A · (t^-a - (2t)^-a) has its own. The law knows nothing of a schedule and is itself wrong by about
`LAW_ERROR`, which widens the interval.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy.stats import f as f_distribution

from studies.diagnosis.curves import Curve, FloatArray

CLOSE_NATS = 0.02
"""`Enough` means: within this of the last loss (seeds alone differ by 0.01 nats and more)."""

FIT_FROM = 0.15
"""Share of the steps that are left out of the fit: warm-up and first descent."""
FEWEST_VAL, FEWEST_TRAIN = 5, 12
LEVEL = 0.9
LAW_ERROR = 2.0
"""Factor by which the gain was off: runs of twice the steps gained within it in 14 of 20
(development seeds of `benchmarks/diagnosis.py`; the bare profile contained it in 4)."""
WIDEST_NATS, WIDEST_TIMES = 0.1, 3.0
"""The gain cannot be estimated where its interval is wider than this, and than so many gains."""
EXPONENTS = np.linspace(0.05, 2.0, 40)


@dataclass(frozen=True)
class DoublingGain:
    """What twice as many steps would bring, by the power law."""

    gain_nats: float
    low_nats: float
    high_nats: float
    """Interval of `LEVEL` over the exponent, widened by `LAW_ERROR`."""
    exponent: float
    from_step: int
    to_step: int
    """Range of the fit."""
    n_points: int

    @property
    def is_estimable(self) -> bool:
        """Whether the curve narrows the gain down."""
        width = self.high_nats - self.low_nats
        return self.flattens and width <= max(WIDEST_NATS, WIDEST_TIMES * self.gain_nats)

    @property
    def flattens(self) -> bool:
        """Whether some exponent of the grid fits better than those at its ends."""
        return bool(EXPONENTS[0] < self.exponent < EXPONENTS[-1])


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
    extrapolation: DoublingGain | None
    """None: too few points after the first descent."""


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
    fewest = FEWEST_VAL if series == "validation" else FEWEST_TRAIN
    return StepsNeeded(
        series=series,
        last_step=int(steps[-1]),
        last_nats=float(losses[-1]),
        close_nats=close,
        enough_step=int(steps[first]),
        extrapolation=_extrapolate(steps, measured, fewest),
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


@cache
def _f_bound(freedom: int) -> float:
    return float(f_distribution.ppf(LEVEL, 1, freedom))


def _extrapolate(steps: FloatArray, losses: FloatArray, fewest: int) -> DoublingGain | None:
    used = steps >= FIT_FROM * steps[-1]
    t, y = steps[used] / steps[-1], losses[used]
    if t.size < fewest - 1:
        return None
    powers = t[None, :] ** -EXPONENTS[:, None]  # (exponents, points)
    centred = powers - powers.mean(axis=1, keepdims=True)
    slopes = centred @ (y - y.mean()) / (centred**2).sum(axis=1)
    slopes = np.maximum(slopes, 0.0)  # more steps of a sound run do no harm
    errors = ((y - y.mean() - slopes[:, None] * centred) ** 2).sum(axis=1)
    gains = slopes * (1.0 - 2.0**-EXPONENTS)
    best = int(np.argmin(errors))
    freedom = max(1, t.size - 3)
    bound = errors[best] * (1.0 + _f_bound(freedom) / freedom)
    near = gains[errors <= bound + 1e-12]
    return DoublingGain(
        gain_nats=float(gains[best]),
        low_nats=float(near.min()) / LAW_ERROR,
        high_nats=float(near.max()) * LAW_ERROR,
        exponent=float(EXPONENTS[best]), from_step=int(steps[used][0]),
        to_step=int(steps[-1]), n_points=int(t.size),
    )  # fmt: skip


def steps_sentences(steps: StepsNeeded | None) -> list[str]:
    """In words: when the loss was as good as at its end, and what twice the steps would bring."""
    if steps is None:
        return []
    last = steps.last_step
    lines = [
        f"The {steps.series} loss stayed within {steps.close_nats:.2g} nats of its last value "
        f"({steps.last_nats:.3f}) from step {steps.enough_step:,} of {last:,} on."
    ]
    law = steps.extrapolation
    unknown = "What twice the steps would bring cannot be estimated from this curve:"
    if law is None:
        return [*lines, f"{unknown} too few points for a fit."]
    if not law.flattens:
        return [*lines, f"{unknown} the loss does not flatten as a power law does."]
    fit = f"a power law over steps {law.from_step:,} to {law.to_step:,}, {law.n_points} points"
    interval = f"{law.low_nats:.3f} to {law.high_nats:.3f} nats"
    if not law.is_estimable:
        return [*lines, f"{unknown} {interval} ({fit})."]
    gain = f"Twice the steps would bring about {law.gain_nats:.3f} nats less"
    return [*lines, f"{gain} ({interval}; {fit})."]
