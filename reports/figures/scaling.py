"""Figures of a scaling fit: isoFLOP valleys, loss against compute.

Each takes a frame of runs (`n_params`, `tokens`, `val_loss_nats`, `max_lr`, `batch_tokens`; NaN
where not known) and their fit. FLOPs are 6 · N · D.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from budgetsweep.formats import count, flops, loss
from reports.style import theme
from reports.style.axes import linear_axis, log_axis, nats, padded_log_limits
from reports.style.marks import LOSS_LABEL, clip_marks, dots, key
from reports.style.theme import (
    BEST,
    GOOD,
    INK,
    MUTED,
    OTHER,
    PALETTE,
    PROMOTED,
    Chart,
    NoChart,
)
from studies.scaling.fit_data import FLOPS_PER_PARAM_TOKEN, distinct_budgets
from studies.scaling.result import UNDERTRAINED_BELOW, ScalingFit

MOST_BUDGETS = 7
"""Budgets drawn as valleys; of more an even choice."""
COLOURS = ("best", "amber", "green", "purple", "brown", "cyan", "other")
STEPS = 60
"""Points of a drawn curve."""


def isoflop_fit(points: pd.DataFrame, fit: ScalingFit) -> Chart | NoChart:
    """Loss against parameters at equal FLOPs: runs, the law's valleys, their lowest points.

    Where rates and batches are known, runs are drawn as if well tuned: what the fit says that
    theirs cost is taken off.
    """
    runs = _as_if_tuned(points, fit)
    budgets = distinct_budgets(runs["flops"].to_numpy())
    shown = [b for b in budgets if (runs["budget"] == b).sum() > 1]
    if not shown:
        return NoChart("isoflop_fit", "No two runs have the same FLOPs: no valley to draw.")
    if len(shown) > MOST_BUDGETS:
        places = np.linspace(0, len(shown) - 1, MOST_BUDGETS).round().astype(int)
        shown = [shown[i] for i in places]
    ends = [budgets[0], budgets[-1]]
    best = [fit.best_params(budget) for budget in ends]
    slope = np.log(best[1] / best[0]) / np.log(ends[1] / ends[0]) if len(budgets) > 1 else np.nan
    title = (
        f"The best size grows as the {slope:.2f}th power of the FLOPs: {count(best[0])} parameters "
        f"at {flops(ends[0])}, {count(best[1])} at {flops(ends[1])}"
    )
    if len(budgets) == 1:
        title = f"At {flops(ends[0])} FLOPs the best size is {count(best[0])} parameters"

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        limits = padded_log_limits(runs["n_params"].to_numpy())
        low, high = _valley_limits(runs, fit, shown)
        log_axis(axes, "x", limits, count, 7)
        linear_axis(axes, "y", (low, high), nats)
        handles: list[Any] = []
        for budget, colour in zip(shown, COLOURS, strict=False):
            _valley(axes, runs[runs["budget"] == budget], fit, budget, PALETTE[colour])
            handles.append(key(f"{flops(budget)} FLOPs", marker="o", color=PALETTE[colour]))
        path = np.geomspace(budgets[0], budgets[-1] * 10, STEPS)
        sizes = np.array([fit.best_params(budget) for budget in path])
        lowest = fit.losses(sizes, path / FLOPS_PER_PARAM_TOKEN / sizes)
        axes.plot(sizes, lowest, color=INK, lw=1.4, linestyle=(0, (4, 2)), zorder=3)
        handles.append(
            key("best size, to ×10 FLOPs", linestyle=(0, (4, 2)), linewidth=1.4, color=INK)
        )
        drawn = runs[runs["budget"].isin(shown)]
        handles += clip_marks(axes, drawn["n_params"].to_numpy(), drawn["loss"].to_numpy(), high)
        axes.set_xlabel("parameters")
        axes.set_ylabel(LOSS_LABEL)
        if fit.knows_lr or fit.knows_batch:
            theme.remark(axes, "runs as if well tuned")
        elif len(shown) < len(budgets):
            theme.remark(axes, f"{len(shown)} of {len(budgets)} budgets")
        theme.legend_below(figure, handles)

    alt = (
        "Validation loss of runs against their parameters, one colour per budget; the fitted law "
        "at each budget as a line, dotted where runs have less than "
        f"{UNDERTRAINED_BELOW:g} tokens per parameter; a dashed line joins the best sizes."
    )
    return Chart("isoflop_fit", title, alt, draw, 4.4)


def compute_frontier(
    points: pd.DataFrame,
    fit: ScalingFit,
    prediction: Mapping[str, float] | None = None,
    outcome: Mapping[str, float] | None = None,
) -> Chart:
    """Loss against training FLOPs: runs, the law's frontier with its band, what was promoted.

    `prediction` is of a run to come (`n_params`, `tokens`, `loss_nats`, `low_nats`, `high_nats`),
    `outcome` what it reached.
    """
    spent = _flops_of(points).to_numpy(dtype=float)
    measured = points["val_loss_nats"].to_numpy(dtype=float)
    promoted = [_flops_of(one) for one in (prediction, outcome) if one is not None]
    reach = max([10 * fit.flops_range[1], *promoted])
    path = np.geomspace(spent.min(), reach, STEPS)
    sizes = [fit.best_params(budget) for budget in path]
    frontier = [
        fit.predict(size, budget / FLOPS_PER_PARAM_TOKEN / size)
        for size, budget in zip(sizes, path, strict=True)
    ]
    lows, highs = [one.low_nats for one in frontier], [one.high_nats for one in frontier]
    title = (
        f"The law predicts {loss(frontier[-1].loss_nats, 3)} nats at {flops(reach)} FLOPs and the "
        f"best size ({loss(lows[-1], 3)} to {loss(highs[-1], 3)}, 80 % interval)"
    )
    if prediction is not None:
        title = (
            f"Predicted {loss(prediction['loss_nats'], 3)} nats "
            f"({loss(prediction['low_nats'], 3)} to {loss(prediction['high_nats'], 3)})"
        )
        if outcome is not None:
            inside = prediction["low_nats"] <= outcome["loss_nats"] <= prediction["high_nats"]
            title += (
                f", measured {loss(outcome['loss_nats'], 3)}: "
                f"{'within' if inside else 'outside'} the interval"
            )

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        values = [min(lows), float(measured.min())]
        values += [outcome["loss_nats"]] if outcome is not None else []
        values += [prediction["low_nats"]] if prediction is not None else []
        top = max(highs[0], float(np.quantile(measured, 0.6)))
        margin = 0.06 * (top - min(values))
        high = top + 2 * margin
        limits = padded_log_limits([spent.min(), reach])
        log_axis(axes, "x", limits, flops, 6)
        linear_axis(axes, "y", (min(values) - margin, high), nats)
        axes.fill_between(path, lows, highs, color=GOOD, alpha=0.18, lw=0)
        axes.plot(path, [o.loss_nats for o in frontier], color=BEST, lw=1.8)
        axes.axvline(fit.flops_range[1], color=MUTED, lw=0.9, linestyle=(0, (2, 3)))
        dots(axes, spent, measured, color=OTHER, zorder=1.8)
        handles: list[Any] = [
            key(f"{len(points)} runs", marker="o", color=OTHER),
            key("law at the best size", linestyle="-", linewidth=1.8, color=BEST),
            Patch(color=GOOD, alpha=0.3, label="80 % of runs"),
            key("largest FLOPs fitted", linestyle=(0, (2, 3)), linewidth=0.9, color=MUTED),
            *clip_marks(axes, spent, measured, high),
            *_promoted_marks(axes, prediction, outcome),
        ]
        axes.set_xlabel("training FLOPs (6 · parameters · tokens)")
        axes.set_ylabel(LOSS_LABEL)
        theme.legend_below(figure, handles)

    alt = (
        "Validation loss of runs against training FLOPs on a log axis, with the fitted law at the "
        "best size and its 80 % band beyond the largest run."
    )
    return Chart("compute_frontier", title, alt, draw, 4.2)


def _as_if_tuned(points: pd.DataFrame, fit: ScalingFit) -> pd.DataFrame:
    """Runs with `flops`, their `budget`, and `loss` less what learning rate and batch cost."""
    runs = points.assign(flops=_flops_of(points))
    tuning = {name: runs[name].to_numpy() for name in ("max_lr", "batch_tokens")}
    as_run = fit.losses(runs["n_params"], runs["tokens"], **tuning)
    cost = as_run - fit.losses(runs["n_params"], runs["tokens"])
    budgets = np.array(distinct_budgets(runs["flops"].to_numpy()))
    nearest = np.abs(np.log(runs["flops"].to_numpy()[:, None] / budgets)).argmin(axis=1)
    return runs.assign(loss=runs["val_loss_nats"] - cost, budget=budgets[nearest])


def _valley(axes: Axes, runs: pd.DataFrame, fit: ScalingFit, budget: float, colour: str) -> None:
    """Runs of one budget, the law there, and its lowest point."""
    sizes = runs["n_params"].to_numpy()
    path = np.geomspace(sizes.min() / 1.1, sizes.max() * 1.1, STEPS)
    tokens = budget / FLOPS_PER_PARAM_TOKEN / path
    curve = fit.losses(path, tokens)
    few = tokens / path < UNDERTRAINED_BELOW
    axes.plot(path[~few], curve[~few], color=colour, lw=1.3)
    axes.plot(path[few], curve[few], color=colour, lw=1.1, linestyle=(0, (1, 2)))
    dots(axes, sizes, runs["loss"].to_numpy(), color=colour, markersize=4.5)
    best = fit.best_params(budget)
    lowest = fit.losses([best], [budget / FLOPS_PER_PARAM_TOKEN / best])
    axes.plot([best], lowest, "D", ms=6, color=colour, mec=theme.PAPER, zorder=4)


def _valley_limits(
    runs: pd.DataFrame, fit: ScalingFit, budgets: list[float]
) -> tuple[float, float]:
    """Limits of the loss axis: all valleys, their walls as far as the law holds."""
    shown = runs[runs["budget"].isin(budgets)]
    holds = shown["tokens"] / shown["n_params"] >= UNDERTRAINED_BELOW
    if fit.knows_batch or holds.sum() < 2:
        holds |= True
    values = shown["loss"][holds]
    end = 10 * budgets[-1]
    size = fit.best_params(end)
    low = min(float(values.min()), float(fit.losses([size], [end / 6 / size])[0]))
    high = float(values.max())
    margin = 0.06 * (high - low)
    return low - margin, high + margin


def _flops_of(run: Any) -> Any:
    """FLOPs of a run, or of each run of a frame."""
    return FLOPS_PER_PARAM_TOKEN * run["n_params"] * run["tokens"]


def _promoted_marks(
    axes: Axes, prediction: Mapping[str, float] | None, outcome: Mapping[str, float] | None
) -> list[Line2D]:
    """The prediction with its interval and the measured run."""
    handles = []
    if prediction is not None:
        middle = prediction["loss_nats"]
        ends = [[middle - prediction["low_nats"]], [prediction["high_nats"] - middle]]
        axes.errorbar(
            [_flops_of(prediction)], [middle], yerr=ends, fmt="D", ms=6, color=INK, capsize=4,
            lw=1.4, zorder=4,
        )  # fmt: skip
        handles.append(key("predicted before the run", marker="D", color=INK))
    if outcome is not None:
        axes.plot(
            [_flops_of(outcome)], [outcome["loss_nats"]], "o", ms=8.5, color=PROMOTED,
            mec=theme.PAPER, zorder=5,
        )  # fmt: skip
        handles.append(key("measured", marker="o", color=PROMOTED))
    return handles
