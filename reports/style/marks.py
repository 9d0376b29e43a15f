"""Marks that several figures share: dots, keys of a legend, runs beyond the frame."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from reports.style.theme import BEST, OTHER, PAPER, RASTER_ABOVE
from studies.diagnosis.curves import FloatArray

LOSS_LABEL = "validation loss (nats per token)"


def dots(axes: Axes, x: FloatArray, y: FloatArray, **options: object) -> None:
    """Markers without lines; many of them become pixels, so that the file stays small."""
    settings: dict[str, object] = {
        "linestyle": "none",
        "marker": "o",
        "markersize": 5,
        "markeredgewidth": 0,
        "rasterized": len(x) > RASTER_ABOVE,
        **options,
    }
    axes.plot(x, y, **settings)  # type: ignore[arg-type]


def key(label: str, **options: object) -> Line2D:
    """An entry of a legend."""
    settings: dict[str, object] = {"linestyle": "none", "markersize": 5.5, "markeredgewidth": 0}
    return Line2D([], [], label=label, **{**settings, **options})  # type: ignore[arg-type]


def mark_best(axes: Axes, x: float, y: float) -> None:
    """The best trial, larger than the others."""
    axes.plot([x], [y], "o", ms=8.5, color=BEST, mec=PAPER)


def clip_marks(axes: Axes, x: FloatArray, y: FloatArray, top: float) -> list[Line2D]:
    """Mark runs whose loss lies above the axis by a triangle at its top; the legend's entry."""
    above = y > top
    number = int(above.sum())
    if not number:
        return []
    axes.plot(
        x[above], np.full(number, 0.985), transform=axes.get_xaxis_transform(), linestyle="none",
        marker="^", markersize=5.5, color=OTHER, markeredgewidth=0,
    )  # fmt: skip
    return [key(f"{number} above the frame", marker="^", color=OTHER)]
