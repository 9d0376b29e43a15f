"""Figures of what made runs good: size, learning rate, importance of each parameter."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from budgetsweep.formats import count, flops, rate
from reports.facts import BEST_FEW, Facts, as_number, final_loss, tokens_per_param
from reports.style import theme
from reports.style.axes import linear_axis, log_axis, loss_limits, nats, padded_log_limits
from reports.style.marks import LOSS_LABEL, clip_marks, dots, key, mark_best
from reports.style.theme import BEST, GOOD, OTHER, PALETTE, Chart, NoChart
from studies.database.tables import Run
from studies.diagnosis.curves import FloatArray
from studies.space.search_space import Parameter

IMPORTANCE_MIN_TRIALS = 12
"""Complete trials under which importances are noise: the best fifth would be one or two trials."""

AT_BUDGET = 0.9
"""Share of the budget that a run must plan to count as a run at the budget."""


def isoflop(facts: Facts) -> Chart | NoChart:
    """Loss against parameters at equal training FLOPs."""
    budget = facts.study.budget_flops
    convention = facts.study.convention
    runs = [r for r in facts.ranked if r.planned_flops(convention) >= AT_BUDGET * budget]
    if not runs:
        return NoChart("isoflop", "No complete trial used the whole budget: no view at the budget.")
    best = runs[0]
    sizes = np.array([r.n_params for r in runs], dtype=float)
    losses = np.array([final_loss(r) for r in runs])
    different = len({r.n_params for r in runs})
    title = (
        f"At {flops(budget)} FLOPs the lowest loss has {count(best.n_params)} parameters and "
        f"{tokens_per_param(best):.3g} tokens per parameter"
    )
    if different > 2 and best.n_params in (min(sizes), max(sizes)):
        title += ", at the edge of the sizes tried"

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        low, high = loss_limits(losses)
        log_axis(axes, "x", padded_log_limits(sizes), count, 7)
        linear_axis(axes, "y", (low, high), nats)
        dots(axes, sizes, losses, color=OTHER)
        handles = [key(f"{len(runs)} trials at the budget", marker="o", color=OTHER)]
        edge = _lowest_by_size(sizes, losses)
        if len(edge[0]) > 2:
            axes.plot(*edge, color=GOOD, lw=1.8, zorder=1.9)
            handles.append(key("lowest of each size", linestyle="-", lw=1.8, color=GOOD))
        mark_best(axes, best.n_params, final_loss(best))
        handles.append(key(f"trial {best.number}, the best", marker="o", color=BEST))
        handles += clip_marks(axes, sizes, losses, high)
        axes.set_xlabel("parameters (embeddings counted)")
        axes.set_ylabel(LOSS_LABEL)
        theme.legend_below(figure, handles)

    alt = (
        "Validation loss of each complete trial against its number of parameters, all at the same "
        "training FLOPs; a line joins the lowest loss of each size."
    )
    return Chart("isoflop", title, alt, draw)


def _lowest_by_size(sizes: FloatArray, losses: FloatArray) -> tuple[FloatArray, FloatArray]:
    """The lowest loss in each class of sizes (a seventh of a decade wide), by size."""
    classes = np.round(np.log10(sizes) * 7)
    chosen = [
        min(np.flatnonzero(classes == one), key=lambda i: losses[i]) for one in np.unique(classes)
    ]
    return sizes[chosen], losses[chosen]


def learning_rate(facts: Facts) -> Chart | NoChart:
    """Loss against the peak learning rate, by size class."""
    runs = [r for r in facts.ranked if facts.has_learning_rate(r) and r.config["max_lr"] > 0]
    rates = np.array([r.config["max_lr"] for r in runs], dtype=float)
    if len(set(rates.tolist())) < 2:
        why = "All complete trials have one learning rate, so nothing shows what it does."
        if not runs:
            why = "No complete trial has a recorded learning rate, so nothing shows what it does."
        return NoChart("learning_rate", why)
    losses = np.array([final_loss(r) for r in runs])
    few = rates[:BEST_FEW]
    title = f"The best trial has a peak learning rate of {rate(rates[0])}"
    if len(runs) > BEST_FEW:
        title += f"; the best {len(few)} lie between {rate(few.min())} and {rate(few.max())}"

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        low, high = loss_limits(losses)
        log_axis(axes, "x", padded_log_limits(rates), rate, 7)
        linear_axis(axes, "y", (low, high), nats)
        handles = []
        for label, members, marker, colour in _size_classes(runs):
            dots(axes, rates[members], losses[members], marker=marker, color=colour)
            handles.append(key(label, marker=marker, color=colour))
        axes.plot(rates[:1], losses[:1], "o", ms=11, mfc="none", mec=BEST, mew=2)
        handles.append(
            key(f"trial {runs[0].number}, the best", marker="o", markerfacecolor="none",
                markeredgecolor=BEST, markeredgewidth=2, markersize=8)
        )  # fmt: skip
        handles += clip_marks(axes, rates, losses, high)
        axes.set_xlabel("peak learning rate")
        axes.set_ylabel(LOSS_LABEL)
        theme.legend_below(figure, handles)

    alt = (
        "Validation loss of each complete trial against its peak learning rate (log axis), by size."
    )
    return Chart("learning_rate", title, alt, draw)


def _size_classes(runs: list[Run]) -> list[tuple[str, FloatArray, str, str]]:
    """Runs by thirds of their parameters: label, mask, marker, colour."""
    sizes = np.array([r.n_params for r in runs], dtype=float)
    low, high = np.quantile(sizes, [1 / 3, 2 / 3], method="nearest")
    everything = np.ones(len(runs), dtype=bool)
    if len(runs) < 12 or not min(sizes) < low < high < max(sizes):
        return [("complete trial", everything, "o", OTHER)]
    return [
        (f"≤ {count(low)} parameters", sizes <= low, "v", PALETTE["amber"]),
        (f"≤ {count(high)}", (sizes > low) & (sizes <= high), "o", PALETTE["green"]),
        (f"> {count(high)}", sizes > high, "s", PALETTE["purple"]),
    ]


def importance(facts: Facts) -> Chart | NoChart:
    """Hyperparameter importance by PED-ANOVA (Watanabe et al. 2023, arXiv:2304.10255)."""
    runs = facts.ranked
    if len(runs) < IMPORTANCE_MIN_TRIALS:
        why = (
            f"Too few trials: hyperparameter importance needs {IMPORTANCE_MIN_TRIALS} complete "
            f"trials or more, this study has {len(runs)}."
        )
        return NoChart("importance", why)
    shares, quantile = importances(facts)
    if not shares:
        why = "Importance is unknown: the complete trials vary in fewer than two parameters."
        return NoChart("importance", why)
    names = list(shares)
    top = max(1, round(quantile * len(runs)))
    title = (
        f"{names[0]} matters most for being among the best {top} of {len(runs)} trials "
        f"({100 * shares[names[0]]:.0f} %)"
    )

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        heights = np.arange(len(names))[::-1]
        values = [100 * shares[name] for name in names]
        colours = [BEST] + [GOOD] * (len(names) - 1)
        axes.barh(heights, values, height=0.62, color=colours)
        for height, value in zip(heights, values, strict=True):
            axes.annotate(
                f"{value:.0f} %", (value, height), xytext=(4, 0), textcoords="offset points",
                va="center", fontsize=9,
            )  # fmt: skip
        axes.set_yticks(heights, [theme.printable(name, 16) for name in names])
        axes.tick_params(axis="y", length=0)
        linear_axis(axes, "x", (0, 1.13 * max(*values, 1.0)), lambda v: f"{v:.0f} %", 5)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("share of importance (PED-ANOVA)")

    alt = "Bars: the share of importance of each varied parameter, the largest first."
    return Chart("importance", title, alt, draw, 1.2 + 0.33 * len(names))


def importances(facts: Facts) -> tuple[dict[str, float], float]:
    """Shares of importance, largest first, and the quantile of trials called good.

    The target quantile holds at least five trials, as PED-ANOVA's authors advise, but never more
    than half of them. No shares: fewer than two parameters vary.
    """
    import optuna
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    runs = facts.ranked
    quantile = min(0.5, max(0.1, 5 / len(runs)))
    columns: dict[str, list[Any]] = {}
    distributions: dict[str, Any] = {}
    for name in facts.varied:
        if all(name in r.params for r in runs):
            values = [r.params[name] for r in runs]
            distribution, coded = _distribution(facts.parameters.get(name), values)
            if distribution is not None:
                columns[name], distributions[name] = coded, distribution
    if len(columns) < 2 or len({final_loss(r) for r in runs}) < 2:
        return {}, quantile
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        study = optuna.create_study(direction="minimize")
        study.add_trials(
            [
                optuna.trial.create_trial(
                    params={name: column[i] for name, column in columns.items()},
                    distributions=distributions,
                    value=final_loss(run),
                )
                for i, run in enumerate(runs)
            ]
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            shares = get_param_importances(
                study, evaluator=PedAnovaImportanceEvaluator(target_quantile=quantile)
            )
    except (ValueError, RuntimeError):
        return {}, quantile
    finally:
        optuna.logging.set_verbosity(level)
    return dict(sorted(shares.items(), key=lambda item: (-item[1], item[0]))), quantile


def _distribution(entry: Parameter | None, values: list[Any]) -> tuple[Any, list[Any]]:
    """Optuna's distribution of one parameter, and the values coded for it; None: it is constant."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if len({repr(value) for value in values}) < 2:
        return None, []
    numbers = [as_number(value) for value in values]
    if entry is not None and entry.values is not None:
        numbers = [None]
    found = [number for number in numbers if number is not None]
    if len(found) == len(values):
        log = entry is not None and entry.is_log and min(found) > 0
        if all(isinstance(value, int) for value in values):
            return IntDistribution(int(min(found)), int(max(found)), log=log), values
        return FloatDistribution(min(found), max(found), log=log), found
    order = sorted({repr(value) for value in values})
    return CategoricalDistribution(order), [repr(value) for value in values]
