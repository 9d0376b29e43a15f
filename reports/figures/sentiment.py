"""Figure of a zero-shot classification: how p(positive) is spread over the two classes."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from budgetsweep.formats import percent, whole
from reports.style.axes import linear_axis
from reports.style.marks import key
from reports.style.theme import BEST, INK, PROMOTED, Chart, legend_below, remark
from studies.diagnosis.curves import FloatArray

BINS = 40
EVEN_ODDS = 0.5


def _limits(values: FloatArray) -> tuple[float, float]:
    """Limits around the values and 0.5, within [0, 1] but for a margin."""
    low, high = min(float(values.min()), EVEN_ODDS), max(float(values.max()), EVEN_ODDS)
    margin = max(0.04 * (high - low), 0.005)
    return low - margin, high + margin


def p_positive_histogram(
    labels: FloatArray,
    probabilities: FloatArray,
    median: float,
    accuracies: tuple[float, float],
) -> Chart:
    """Histogram of p(positive) by class, with the boundary 0.5 and the calibrated one, the median.

    Labels (N,) are 0 or 1 (positive), N at least 1; accuracies are without and with calibration.
    """
    n = len(probabilities)
    plain, calibrated = (percent(accuracy, 1) for accuracy in accuracies)
    title = (
        f"Accuracy {plain} at the boundary 0.5, {calibrated} at the median, on {whole(n)} reviews"
    )
    share = float((probabilities > EVEN_ODDS).mean())

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        limits = _limits(probabilities)
        edges = np.linspace(*limits, BINS + 1).tolist()
        tallest = 0
        for label, colour in ((0, PROMOTED), (1, BEST)):
            values = probabilities[labels == label]
            # Outlined over a light fill, so that either class can be seen through the other.
            heights, _, _ = axes.hist(values, edges, color=colour, alpha=0.25)
            axes.hist(values, edges, histtype="step", color=colour, lw=1.5)
            tallest = max(tallest, int(np.max(heights)))
        axes.axvline(EVEN_ODDS, color=INK, lw=1.5)
        axes.axvline(median, color=INK, lw=1.5, linestyle=(0, (4, 2)))
        linear_axis(axes, "x", limits, lambda value: f"{value:g}")
        linear_axis(axes, "y", (0, 1.08 * max(tallest, 1)), integer=True)
        axes.set_xlabel("p(positive): softmax over the two words")
        axes.set_ylabel("reviews")
        remark(axes, f"{percent(share, 0)} lie above 0.5")
        boundary = {"linestyle": "-", "color": INK, "linewidth": 1.5}
        n_positive = int((labels == 1).sum())
        handles = [
            Patch(color=PROMOTED, alpha=0.6, label=f"negative reviews ({whole(n - n_positive)})"),
            Patch(color=BEST, alpha=0.6, label=f"positive reviews ({whole(n_positive)})"),
            key("boundary 0.5", **boundary),
            key(f"median {median:.3f}", **{**boundary, "linestyle": (0, (4, 2))}),
        ]
        legend_below(figure, handles)

    return Chart(
        name="histogram",
        title=title,
        alt=(
            f"Histogram of p(positive) of {whole(n)} reviews, one outline for each class, from "
            f"{float(probabilities.min()):.3f} to {float(probabilities.max()):.3f}, with lines at "
            f"0.5 and at the median {median:.3f}."
        ),
        draw=draw,
    )
