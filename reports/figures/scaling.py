"""Figures of a scaling fit: isoFLOP valleys, loss against compute, regret, learning rate.

Each takes a frame of runs (`n_params`, `tokens`, `val_loss_nats`; where known `max_lr`,
`batch_tokens`; NaN where not) and a fit as `ScalingFit.to_dict` writes it. FLOPs are 6 · N · D.
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

from reports.figures.runs import LOSS_LABEL, clip_marks, dots, key
from reports.figures.scaling_runs import (
    as_if_tuned,
    at_budget,
    carried_rates,
    losses_as_run,
)
from reports.style import theme
from reports.style.axes import linear_axis, log_axis, nats, padded_log_limits
from reports.style.formats import loss, power, rate, short
from reports.style.theme import (
    BEST,
    GOOD,
    INK,
    LIGHT,
    MUTED,
    OTHER,
    PROMOTED,
    Chart,
    Layout,
    NoChart,
)
from studies.diagnosis.curves import FloatArray
from studies.scaling.fit_data import FLOPS_PER_PARAM_TOKEN, distinct_budgets
from studies.scaling.result import UNDERTRAINED_BELOW, LossPrediction, ScalingFit

MOST_BUDGETS = 7
"""Budgets drawn as valleys; of more an even choice."""
COLOURS = ("best", "amber", "green", "purple", "brown", "cyan", "other")
LEVEL = 0.8
STEPS = 60
"""Points of a drawn curve."""


def isoflop_fit(points: pd.DataFrame, fit: Mapping[str, Any]) -> Chart | NoChart:
    """Loss against parameters at equal FLOPs: runs, the law's valleys, their lowest points.

    Where rates and batches are known, runs are drawn as if well tuned: what the fit says that
    theirs cost is taken off.
    """
    found = ScalingFit.from_dict(dict(fit))
    runs = as_if_tuned(points, found)
    budgets = distinct_budgets(runs["flops"].to_numpy())
    shown = [b for b in budgets if len(at_budget(runs, b)) > 1]
    if not shown:
        return NoChart("isoflop_fit", "No two runs have the same FLOPs: no valley to draw.")
    if len(shown) > MOST_BUDGETS:
        places = np.linspace(0, len(shown) - 1, MOST_BUDGETS).round().astype(int)
        shown = [shown[i] for i in places]
    ends = [budgets[0], budgets[-1]]
    best = [found.best_params(flops) for flops in ends]
    slope = np.log(best[1] / best[0]) / np.log(ends[1] / ends[0]) if len(budgets) > 1 else np.nan
    title = (
        f"The best size grows as the {slope:.2f}th power of the FLOPs: {short(best[0])} parameters "
        f"at {power(ends[0], 3)}, {short(best[1])} at {power(ends[1], 3)}"
    )
    if len(budgets) == 1:
        title = f"At {power(ends[0], 3)} FLOPs the best size is {short(best[0])} parameters"
    tuned = found.knows_lr or found.knows_batch

    def draw(figure: Figure, layout: Layout) -> None:
        axes = figure.subplots()
        limits = padded_log_limits(runs["n_params"].to_numpy())
        low, high = _valley_limits(runs, found, shown)
        log_axis(axes, "x", limits, short, 7 if layout == "wide" else 5)
        linear_axis(axes, "y", (low, high), nats)
        handles: list[Any] = []
        for i, flops in enumerate(shown):
            _valley(axes, at_budget(runs, flops), found, flops, LIGHT[COLOURS[i % len(COLOURS)]])
            handles.append(
                key(f"{power(flops, 3)} FLOPs", marker="o", color=LIGHT[COLOURS[i % len(COLOURS)]])
            )
        path = np.geomspace(budgets[0], budgets[-1] * 10, STEPS)
        sizes = np.array([found.best_params(flops) for flops in path])
        lowest = found.losses(sizes, path / FLOPS_PER_PARAM_TOKEN / sizes)
        axes.plot(sizes, lowest, color=INK, lw=1.4, linestyle=(0, (4, 2)), zorder=3)
        handles.append(
            key("best size, to ×10 FLOPs", linestyle=(0, (4, 2)), linewidth=1.4, color=INK)
        )
        drawn = runs[runs["budget"].isin(shown)]
        above = clip_marks(axes, drawn["n_params"].to_numpy(), drawn["loss"].to_numpy(), high)
        if above:
            handles.append(key(f"{above} above the frame", marker="^", color=OTHER))
        axes.set_xlabel("parameters")
        axes.set_ylabel(LOSS_LABEL)
        if tuned:
            theme.remark(axes, "runs as if well tuned")
        elif len(shown) < len(budgets):
            theme.remark(axes, f"{len(shown)} of {len(budgets)} budgets")
        theme.legend_below(figure, handles, layout)

    alt = (
        "Validation loss of runs against their parameters, one colour a budget; the fitted law at "
        "each budget as a line, dotted where runs have less than "
        f"{UNDERTRAINED_BELOW:g} tokens a parameter; a dashed line joins the best sizes."
    )
    return Chart("isoflop_fit", title, alt, draw, 4.4)


def compute_frontier(
    points: pd.DataFrame,
    fit: Mapping[str, Any],
    prediction: Mapping[str, float] | None = None,
    outcome: Mapping[str, float] | None = None,
) -> Chart | NoChart:
    """Loss against training FLOPs: runs, the law's frontier with its band, what was promoted.

    Args:
        points: runs.
        fit: the law.
        prediction: `n_params`, `tokens`, `loss_nats`, `low_nats`, `high_nats` of a run to come.
        outcome: `n_params`, `tokens`, `loss_nats` of that run as measured.
    """
    found = ScalingFit.from_dict(dict(fit))
    if not len(points):
        return NoChart("compute_frontier", "No run is finished: no loss against compute.")
    runs = as_if_tuned(points, found)
    flops = runs["flops"].to_numpy()
    measured = points["val_loss_nats"].to_numpy(dtype=float)
    told = [_flops_of(one) for one in (prediction, outcome) if one is not None]
    reach = max([10 * found.flops_range[1], *told])
    path = np.geomspace(flops.min(), reach, STEPS)
    frontier = [_best_at(found, one) for one in path]
    end = frontier[-1]
    title = (
        f"The law expects {loss(end.loss_nats, 3)} nats at {power(reach, 3)} FLOPs and the best "
        f"size, {loss(end.low_nats, 3)} to {loss(end.high_nats, 3)} with 80 %"
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
                f"{'inside' if inside else 'outside'} the interval"
            )

    def draw(figure: Figure, layout: Layout) -> None:
        axes = figure.subplots()
        low = min(one.low_nats for one in frontier)
        values = [low, float(measured.min())]
        values += [one["loss_nats"] for one in (outcome,) if one is not None]
        values += [one["low_nats"] for one in (prediction,) if one is not None]
        top = max(frontier[0].high_nats, float(np.quantile(measured, 0.6)))
        margin = 0.06 * (top - min(values))
        high = top + 2 * margin
        log_axis(
            axes, "x", padded_log_limits([flops.min(), reach]), lambda v: power(v, 2),
            6 if layout == "wide" else 4,
        )  # fmt: skip
        linear_axis(axes, "y", (min(values) - margin, high), nats)
        axes.fill_between(
            path, [o.low_nats for o in frontier], [o.high_nats for o in frontier], color=GOOD,
            alpha=0.18, lw=0,
        )  # fmt: skip
        axes.plot(path, [o.loss_nats for o in frontier], color=BEST, lw=1.8)
        axes.axvline(found.flops_range[1], color=MUTED, lw=0.9, linestyle=(0, (2, 3)))
        dots(axes, flops, measured, color=OTHER, zorder=1.8)
        above = clip_marks(axes, flops, measured, high)
        handles: list[Any] = [
            key(f"{len(points)} runs", marker="o", color=OTHER),
            key("law at the best size", linestyle="-", linewidth=1.8, color=BEST),
            Patch(color=GOOD, alpha=0.3, label="80 % of runs"),
            key("largest FLOPs fitted", linestyle=(0, (2, 3)), linewidth=0.9, color=MUTED),
        ]
        if above:
            handles.append(key(f"{above} above the frame", marker="^", color=OTHER))
        handles += _promoted_marks(axes, prediction, outcome)
        axes.set_xlabel("training FLOPs (6 · parameters · tokens)")
        axes.set_ylabel(LOSS_LABEL)
        theme.legend_below(figure, handles, layout)

    alt = (
        "Validation loss of runs against training FLOPs on a log axis, with the fitted law at the "
        "best size and its 80 % band beyond the largest run."
    )
    return Chart("compute_frontier", title, alt, draw, 4.2)


def regret(
    points: pd.DataFrame,
    fit: Mapping[str, Any],
    small_flops: float,
    large_flops: float,
    chosen: Mapping[str, float] | None = None,
) -> Chart | NoChart:
    """What each size costs at two budgets over the best size there, by the law.

    Args:
        points: runs; their sizes are drawn.
        fit: the law.
        small_flops: the search's budget.
        large_flops: the promotion's.
        chosen: sizes to mark, by what they are called ("best measured": 3.5e6).
    """
    found = ScalingFit.from_dict(dict(fit))
    sizes = np.unique(points["n_params"].to_numpy(dtype=float))
    marked = dict(chosen or {})
    if len(sizes) < 2:
        return NoChart("regret", "Fewer than two sizes: nothing to choose between.")
    best = {flops: found.best_params(flops) for flops in (small_flops, large_flops)}
    lost = float(_regret(found, np.array([best[small_flops]]), large_flops)[0][0])
    won = float(_regret(found, np.array([best[large_flops]]), small_flops)[0][0])
    title = (
        f"The best size at {power(small_flops, 3)} FLOPs loses {loss(lost, 2)} nats at "
        f"{power(large_flops, 3)}; the best one there costs {loss(won, 2)} nats here"
    )

    def draw(figure: Figure, layout: Layout) -> None:
        axes = figure.subplots()
        every = [*sizes, *best.values(), *marked.values()]
        limits = padded_log_limits(every)
        path = np.geomspace(*limits, STEPS)
        handles: list[Any] = []
        top = 0.0
        for flops, colour in ((small_flops, BEST), (large_flops, PROMOTED)):
            middle, low, high = _regret(found, path, flops)
            axes.fill_between(path, low, high, color=colour, alpha=0.15, lw=0)
            axes.plot(path, middle, color=colour, lw=1.8)
            at_sizes = _regret(found, sizes, flops)[0]
            dots(axes, sizes, at_sizes, color=colour, markersize=4.5)
            top = max(top, float(np.quantile(at_sizes, 0.8)))
            handles.append(
                key(f"at {power(flops, 3)} FLOPs", linestyle="-", linewidth=1.8, color=colour)
            )
        top = max(1.15 * top, 0.1)
        for (name, size), dash in zip(marked.items(), ((0, (4, 2)), (0, (1, 2))), strict=False):
            axes.axvline(size, color=INK, lw=1.2, linestyle=dash)
            handles.append(key(name, linestyle=dash, linewidth=1.2, color=INK))
        log_axis(axes, "x", limits, short, 7 if layout == "wide" else 5)
        linear_axis(axes, "y", (-0.02 * top, top), nats)
        axes.set_xlabel("parameters (dots: sizes tried)")
        axes.set_ylabel("nats over the best size")
        theme.remark(axes, "by the law, well tuned; band: 80 %")
        theme.legend_below(figure, handles, layout)

    alt = (
        "Predicted loss over that of the best size, against parameters, at the search's and at the "
        "promotion's FLOPs, with 80 % bands and the sizes that were tried as dots."
    )
    return Chart("regret", title, alt, draw)


def lr_optimum(points: pd.DataFrame, fit: Mapping[str, Any]) -> Chart | NoChart:
    """Peak learning rates of runs against tokens, and the fitted optimum with its band.

    Rates are carried to the median size and the best batch by the fit, so that they compare.
    """
    found = ScalingFit.from_dict(dict(fit))
    if not found.knows_lr:
        return NoChart("lr_optimum", "The runs tell no learning rates: no optimum to draw.")
    rows = points[np.isfinite(points["max_lr"].to_numpy(dtype=float))]
    tokens = rows["tokens"].to_numpy(dtype=float)
    size = float(np.exp(np.median(np.log(rows["n_params"].to_numpy(dtype=float)))))
    rates = carried_rates(found, rows, size)
    low_d, high_d = float(tokens.min()), float(tokens.max())
    cost = (losses_as_run(rows, found) - losses_as_run(rows.assign(max_lr=np.nan), found)).clip(0)
    middle = float(np.sqrt(low_d * high_d))
    title = (
        f"The best peak learning rate is about {found.tuned_lr(size, middle):.2g} for "
        f"{short(size)} parameters at {short(middle)} tokens; e times off costs "
        f"{loss(found.k_lr_nats, 3)} nats"
    )

    def draw(figure: Figure, layout: Layout) -> None:
        axes = figure.subplots()
        reach = max(high_d * 10, low_d * 1.1)
        path = np.geomspace(low_d, reach, STEPS)
        drawn = np.array([found.tuned_lr(size, one) for one in path])
        rng = np.random.default_rng(0)
        fits = [found.draw(rng) for _ in range(100)]
        band = np.quantile(
            [[one.tuned_lr(size, tokens) for tokens in path] for one in fits], (0.1, 0.9), axis=0
        )
        log_axis(axes, "x", padded_log_limits([low_d, reach]), short, 6 if layout == "wide" else 4)
        shown = [*rates, float(drawn.min()), float(drawn.max())]
        log_axis(axes, "y", padded_log_limits(shown), rate, 6)
        axes.fill_between(path, band[0], band[1], color=GOOD, alpha=0.18, lw=0)
        axes.plot(path, drawn, color=BEST, lw=1.8)
        cheap = cost < max(0.02, float(np.quantile(cost, 0.25)))
        dots(axes, tokens[~cheap], rates[~cheap], color=OTHER)
        dots(axes, tokens[cheap], rates[cheap], color=LIGHT["green"], marker="s")
        most = max(0.02, float(np.quantile(cost, 0.25)))
        handles: list[Any] = [
            key("best rate", linestyle="-", linewidth=1.8,
                color=BEST),
            Patch(color=GOOD, alpha=0.3, label="80 %"),
            key(f"cost < {loss(most, 2)} nats", marker="s",
                color=LIGHT["green"]),
            key("other run", marker="o", color=OTHER),
        ]  # fmt: skip
        axes.set_xlabel("training tokens")
        axes.set_ylabel("peak learning rate")
        theme.remark(axes, f"rates carried to {short(size)} parameters and the best batch")
        theme.legend_below(figure, handles, layout)

    alt = (
        "Peak learning rate of each run against its tokens, both on log axes, with the fitted best "
        "rate and its 80 % band."
    )
    return Chart("lr_optimum", title, alt, draw)


def _valley(axes: Axes, runs: pd.DataFrame, fit: ScalingFit, flops: float, colour: str) -> None:
    """Runs of one budget, the law there, and its lowest point."""
    sizes = runs["n_params"].to_numpy()
    path = np.geomspace(sizes.min() / 1.1, sizes.max() * 1.1, STEPS)
    tokens = flops / FLOPS_PER_PARAM_TOKEN / path
    curve = fit.losses(path, tokens)
    few = tokens / path < UNDERTRAINED_BELOW
    axes.plot(path[~few], curve[~few], color=colour, lw=1.3)
    axes.plot(path[few], curve[few], color=colour, lw=1.1, linestyle=(0, (1, 2)))
    dots(axes, sizes, runs["loss"].to_numpy(), color=colour, markersize=4.5)
    best = fit.best_params(flops)
    lowest = fit.losses([best], [flops / FLOPS_PER_PARAM_TOKEN / best])
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


def _best_at(fit: ScalingFit, flops: float) -> LossPrediction:
    size = fit.best_params(flops)
    return fit.predict(size, flops / FLOPS_PER_PARAM_TOKEN / size, level=LEVEL)


def _flops_of(run: Mapping[str, float]) -> float:
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


def _regret(
    fit: ScalingFit, sizes: FloatArray, flops: float
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Nats over the best size at one budget: most probable, low and high of 80 %, each (sizes,)."""

    def over_best(one: ScalingFit) -> FloatArray:
        best = one.best_params(flops)
        every = np.append(sizes, best)
        losses = one.losses(every, flops / FLOPS_PER_PARAM_TOKEN / every)
        return losses[:-1] - losses[-1]

    drawn = [over_best(one) for one in fit.each_draw()]
    low, high = np.quantile(drawn, ((1 - LEVEL) / 2, (1 + LEVEL) / 2), axis=0)
    return over_best(fit), low, high
