"""Axes that can be read: few round ticks, on log axes too; limits that outliers do not spoil."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from studies.diagnosis.curves import FloatArray

_MANTISSAS = (
    (1, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.8, 2, 2.2, 2.5, 2.8, 3, 3.5, 4, 4.5, 5, 5.5, 6, 7, 8, 9),
    (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8),
    (1, 1.5, 2, 3, 4, 5, 7),
    (1, 2, 3, 5, 7),
    (1, 2, 5),
    (1, 3),
    (1,),
)


def log_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """At most `most` round numbers in [low, high], about evenly spaced on a log axis.

    Given 0 < low < high. Where no round numbers fit, linear ticks are given instead.
    """
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    for mantissas in _MANTISSAS:
        ticks = [
            mantissa * 10.0**exponent
            for exponent in range(first, last + 1)
            for mantissa in mantissas
            if low <= mantissa * 10.0**exponent <= high
        ]
        if len(ticks) <= most:
            break
    else:
        decades = range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)
        stride = math.ceil(len(decades) / most)
        ticks = [10.0**exponent for exponent in decades[::stride]]
    if len(ticks) >= min(3, most):
        return ticks
    linear = MaxNLocator(nbins=most - 1, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    inside = [float(tick) for tick in linear if low <= tick <= high]
    inside = inside[:: math.ceil(len(inside) / most) or 1]  # the locator may give more than asked
    return inside if len(inside) >= len(ticks) else ticks


def padded_log_limits(
    values: Sequence[float] | FloatArray, share: float = 0.06
) -> tuple[float, float]:
    """Limits of a log axis around positive `values`, with a margin on each side."""
    low, high = math.log10(min(values)), math.log10(max(values))
    margin = max(share * (high - low), 0.01)
    if high - low < 1e-9:
        margin = 0.2
    return 10 ** (low - margin), 10 ** (high + margin)


def log_axis(
    axes: Axes,
    which: Literal["x", "y"],
    limits: tuple[float, float],
    show: Callable[[float], str],
    most: int = 6,
) -> None:
    """Make one axis logarithmic, with round ticks written by `show` and no minor ticks."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    (axes.set_xlim if which == "x" else axes.set_ylim)(*limits)
    axis.set_major_locator(FixedLocator(log_ticks(*limits, most=most)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: show(value)))
    axis.set_minor_locator(NullLocator())


def linear_axis(
    axes: Axes,
    which: Literal["x", "y"],
    limits: tuple[float, float],
    show: Callable[[float], str] | None = None,
    most: int = 6,
    *,
    integer: bool = False,
) -> None:
    """Set one linear axis: limits, at most `most` round ticks, their writing."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    (axes.set_xlim if which == "x" else axes.set_ylim)(*limits)
    axis.set_major_locator(
        MaxNLocator(nbins=most - 1, integer=integer, steps=[1, 2, 2.5, 5, 10], min_n_ticks=1)
    )
    if show is not None:
        axis.set_major_formatter(FuncFormatter(lambda value, _: show(value)))


def loss_limits(losses: Sequence[float] | FloatArray) -> tuple[float, float]:
    """Limits of a loss axis that outliers do not spoil.

    The lower three quarters of the losses fill at least two fifths of the axis; worse runs may
    lie beyond its top, where `clip_marks` shows them.
    """
    values = np.sort(np.asarray(losses, dtype=float))
    low, high = float(values[0]), float(values[-1])
    body = float(np.quantile(values, 0.75)) - low
    if len(values) >= 8 and body > 0:
        high = min(high, low + 2.5 * body)
    margin = max(0.07 * (high - low), 0.002 * abs(high), 1e-3)
    return low - margin, high + margin


def nats(value: float) -> str:
    """A tick of a loss axis: as many digits as it needs, two at least where it is not whole."""
    text = f"{value:.4f}".rstrip("0")
    whole, _, decimals = text.partition(".")
    return whole if not decimals else f"{whole}.{decimals}"
