"""Figures of a scaling fit: what is drawn where, and what there is nothing to draw of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest

from reports.figures.scaling import compute_frontier, isoflop_fit
from reports.style import theme
from reports.style.theme import Chart, NoChart
from studies.scaling.fit import fit
from studies.scaling.fit_data import FitPoint
from studies.scaling.result import ScalingFit
from tests.support.figures import assert_texts_apart
from tests.support.scaling_worlds import LAW, grid, study

NOISE = 0.003
RUNS = {"table": grid(noise=NOISE), "search": study(LAW, seed=0)}


def frame(runs: Sequence[FitPoint]) -> pd.DataFrame:
    rows = [(r.n_params, r.tokens, r.loss_nats, r.max_lr, r.batch_tokens) for r in runs]
    names = ["n_params", "tokens", "val_loss_nats", "max_lr", "batch_tokens"]
    return pd.DataFrame(rows, columns=names).astype(float)


@pytest.fixture(scope="module")
def fits() -> dict[str, ScalingFit]:
    return {name: fit(runs) for name, runs in RUNS.items()}


def promotion(n_params: float = 5e7, loss: float = 3.4) -> dict[str, float]:
    return {
        "n_params": n_params, "tokens": 1e18 / 6 / n_params, "loss_nats": loss,
        "low_nats": loss - 0.1, "high_nats": loss + 0.1,
    }  # fmt: skip


CHARTS: dict[str, Callable[[pd.DataFrame, ScalingFit], Chart | NoChart]] = {
    "isoflop": isoflop_fit,
    "frontier": compute_frontier,
    "frontier promoted": lambda points, law: compute_frontier(
        points, law, promotion(), promotion(loss=3.45)
    ),
}


def drawn_chart(name: str, runs: str, fits: dict[str, ScalingFit]) -> Chart:
    chart = CHARTS[name](frame(RUNS[runs]), fits[runs])
    assert isinstance(chart, Chart)
    return chart


@pytest.mark.parametrize(
    ("name", "runs"),
    [(name, runs) for name in CHARTS for runs in RUNS],
)
def test_texts_are_inside_and_apart(name: str, runs: str, fits: dict[str, ScalingFit]) -> None:
    assert_texts_apart(drawn_chart(name, runs, fits))


def lines_of(chart: Chart) -> list[tuple[Any, Any, str]]:
    with theme.drawn(chart) as figure:
        return [
            (np.asarray(one.get_xdata()), np.asarray(one.get_ydata()), str(one.get_marker()))
            for one in figure.axes[0].lines
        ]


def test_valleys_have_their_minimum_where_the_law_has_it(fits: dict[str, ScalingFit]) -> None:
    found = fits["table"]
    chart = drawn_chart("isoflop", "table", fits)
    lines = lines_of(chart)
    minima = [(float(x[0]), float(y[0])) for x, y, marker in lines if marker == "D"]
    best = [found.best_params(flops) for flops in (1e16, 3e16, 1e17)]
    assert [x for x, _ in minima] == pytest.approx(best, rel=0.01)
    for (x, y), flops in zip(minima, (1e16, 3e16, 1e17), strict=True):
        assert y == pytest.approx(found.law.loss(x, flops / 6 / x), rel=1e-3)
    assert sum(len(x) for x, _, marker in lines if marker == "o") == len(RUNS["table"])
    assert chart.title.startswith("The best size grows as the 0.4")


def test_runs_of_a_search_are_drawn_as_if_tuned(fits: dict[str, ScalingFit]) -> None:
    lines = lines_of(drawn_chart("isoflop", "search", fits))
    dots = [(x, y) for x, y, marker in lines if marker == "o"]
    sizes = np.concatenate([x for x, _ in dots])
    losses = np.concatenate([y for _, y in dots])
    by_size = {r.n_params: r for r in RUNS["search"]}
    truth = [LAW.loss(n, by_size[n].tokens) for n in sizes]
    raw = np.array([by_size[n].loss_nats for n in sizes])
    assert np.mean(np.abs(losses - truth)) < 0.04
    assert np.mean(np.abs(raw - truth)) > 0.08


def test_the_promotion_is_in_the_title_and_drawn(fits: dict[str, ScalingFit]) -> None:
    points = frame(RUNS["table"])
    chart = compute_frontier(points, fits["table"], promotion(), promotion(loss=3.45))
    assert (
        chart.title == "Predicted 3.400 nats (3.300 to 3.500), measured 3.450: within the interval"
    )
    marks = [(float(x[0]), float(y[0])) for x, y, marker in lines_of(chart) if len(x) == 1]
    assert (pytest.approx(1e18), 3.45) in marks
    missed = compute_frontier(points, fits["table"], promotion(), promotion(loss=3.55))
    assert missed.title.endswith("measured 3.550: outside the interval")


def test_nothing_to_draw(fits: dict[str, ScalingFit]) -> None:
    chart = isoflop_fit(frame(RUNS["table"]).iloc[[0, 8]], fits["table"])
    assert isinstance(chart, NoChart)
