"""The histogram of p(positive): counts, boundaries, and nothing that overlaps."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.patches import Rectangle

from reports.figures.sentiment import p_positive_histogram
from reports.style import theme
from reports.style.theme import Chart
from tests.support.figures import assert_texts_apart

RNG = np.random.default_rng(0)
CASES = {
    "spread": RNG.beta(2, 2, 300),
    "narrow and far from 0.5": 0.83 + 0.01 * RNG.standard_normal(500),
    "one review": np.array([0.2]),
    "all equal": np.full(7, 0.5),
    "certain": np.array([0.0, 1.0, 1.0, 0.0]),
}


def chart(name: str) -> Chart:
    p = CASES[name]
    labels = (np.arange(len(p)) % 3 == 0).astype(int)
    return p_positive_histogram(labels, p, float(np.median(p)), (0.641, 0.49))


@pytest.mark.parametrize("name", CASES)
def test_every_review_is_counted_and_both_boundaries_are_in_the_frame(name: str) -> None:
    p = CASES[name]
    with theme.drawn(chart(name)) as figure:
        figure.draw_without_rendering()
        (axes,) = figure.axes
        bars = sum(patch.get_height() for patch in axes.patches if isinstance(patch, Rectangle))
        assert bars == len(p)
        low, high = axes.get_xlim()
        lines = [line.get_xdata()[0] for line in axes.lines]
        assert lines == [0.5, float(np.median(p))]
        assert low < min(lines)
        assert max(lines) < high
        assert low <= p.min()
        assert p.max() <= high
    assert_texts_apart(chart(name))


def test_the_title_says_both_accuracies_and_the_number() -> None:
    made = chart("spread")
    assert "64.1 %" in made.title
    assert "49.0 %" in made.title
    assert "300" in made.title
    assert "300 reviews" in made.alt
