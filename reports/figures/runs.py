"""Figures of how the search and its runs went: history, learning curves, proposals, schedule.

One function a figure; each takes the facts and gives a `Chart`, or a `NoChart` that says why
there is nothing to draw.
"""

from __future__ import annotations

import itertools

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from budgetsweep.formats import count, flops, loss, plural, rate, times
from reports.facts import Facts, final_loss, has_sampled_softmax, run_config
from reports.style import theme
from reports.style.axes import linear_axis, log_axis, loss_limits, nats, padded_log_limits
from reports.style.marks import LOSS_LABEL, clip_marks, dots, key, mark_best
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
from studies.database.tables import Run
from studies.diagnosis.curves import FloatArray
from trainer.events import RunStatus


def history(facts: Facts) -> Chart | NoChart:
    """Optimisation history: the loss of each trial by proposal, and the best so far."""
    best = facts.best
    if best is None:
        return NoChart("history", "No trial is complete yet, so there is no history to draw.")
    by_number = sorted(facts.ranked, key=lambda r: r.number)
    numbers = np.array([r.number for r in by_number], dtype=float)
    losses = np.array([final_loss(r) for r in by_number])
    failed = [float(r.number) for r in facts.trials if r.status == RunStatus.FAILED]
    rejected = [float(r.number) for r in facts.rejections]
    last = max([*numbers, *failed, *rejected])
    since = sum(r.number > best.number for r in by_number)
    if len(by_number) == 1:
        title = f"One complete trial so far: {loss(best.val_loss_nats, 3)} nats"
    elif since:
        title = (
            f"Trial {best.number} is the best of {len(by_number)} at "
            f"{loss(best.val_loss_nats, 3)} nats; the {plural(since, 'trial')} after it did not "
            "beat it"
        )
    else:
        title = (
            f"Trial {best.number}, the last one, is the best of {len(by_number)} at "
            f"{loss(best.val_loss_nats, 3)} nats: the search was still improving"
        )

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        low, high = loss_limits(losses)
        low -= 0.1 * (high - low) if rejected else 0
        reach = max(last, 1.0)
        linear_axis(axes, "x", (-0.03 * reach, 1.03 * reach), integer=True)
        linear_axis(axes, "y", (low, high), nats)
        so_far = np.minimum.accumulate(losses)
        steps = np.append(numbers, last), np.append(so_far, so_far[-1])
        axes.step(*steps, where="post", color=BEST, lw=1.8)
        dots(axes, numbers, losses, color=OTHER)
        mark_best(axes, best.number, final_loss(best))
        handles = [
            key("complete trial", marker="o", color=OTHER),
            key("best so far", linestyle="-", lw=1.8, color=BEST),
            *clip_marks(axes, numbers, losses, high),
        ]
        if failed:
            edge = axes.get_xaxis_transform()
            axes.plot(
                failed, [0.985] * len(failed), "x", ms=6, mew=1.6, color=PROMOTED, transform=edge
            )
            handles.append(key("failed", marker="x", markeredgewidth=1.6, color=PROMOTED))
        if rejected:
            dots(
                axes, np.array(rejected), np.full(len(rejected), 0.025), marker="|", markersize=7,
                markeredgewidth=1.2, color=PALETTE["amber"], transform=axes.get_xaxis_transform(),
            )  # fmt: skip
            handles.append(key("rejected", marker="|", markeredgewidth=1.5, color=PALETTE["amber"]))
        axes.set_xlabel("proposal")
        axes.set_ylabel(LOSS_LABEL)
        theme.legend_below(figure, handles)

    alt = (
        "Validation loss of each complete trial by the number of its proposal, the best so far as "
        "a line, failed trials at the top, rejected proposals at the bottom."
    )
    return Chart("history", title, alt, draw)


def learning_curves(facts: Facts) -> Chart | NoChart:
    """Validation loss against training FLOPs on log axes, the promoted run beyond the trials."""
    curves = {r.id: c for r in facts.data.runs if (c := _val_curve(facts, r)) is not None}
    if all(len(losses) < 2 for _, losses in curves.values()):
        why = "No run has reported two validation losses: no learning curves."
        return NoChart("learning_curves", why)
    best, promotions = facts.best, [r for r in facts.promotions if r.id in curves]
    trials = [r for r in facts.trials if r.id in curves and (best is None or r.id != best.id)]

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        every = list(curves.values())
        spent = np.concatenate([x for x, _ in every])
        losses = np.concatenate([y for _, y in every])
        ends = np.array([y[-1] for _, y in every])
        top = min(float(losses.max()), max(2.2 * float(ends.min()), 1.15 * float(np.median(ends))))
        log_axis(axes, "x", padded_log_limits(spent, 0.1), flops, 6)
        log_axis(axes, "y", (float(losses.min()) * 0.97, top * 1.06), nats, 7)
        many = len(trials) > 60
        alpha = min(0.75, max(0.06, 30 / max(1, len(trials))))
        axes.add_collection(
            LineCollection(
                [np.column_stack(curves[r.id]) for r in trials], colors=OTHER,
                linewidths=0.5 if many else 0.9, alpha=alpha, rasterized=many,
            ),
            autolim=False,
        )  # fmt: skip
        handles = []
        if trials:
            label = "other trials" if best is not None else "trials"
            handles.append(key(f"{len(trials)} {label}", linestyle="-", lw=1.2, color=OTHER))
        if best is not None and best.id in curves:
            _highlight(axes, facts, best, curves[best.id], BEST)
            handles.append(
                key(f"trial {best.number}, the best", linestyle="-", lw=2, marker="o", color=BEST)
            )
        colours = [PROMOTED, PALETTE["purple"], PALETTE["green"], PALETTE["brown"]]
        for run, colour in zip(promotions, itertools.cycle(colours), strict=False):
            _highlight(axes, facts, run, curves[run.id], colour, marker="D")
            label = f"{run.kind} {run.number}, {times(run.scale)}"
            handles.append(key(label, linestyle="-", lw=2, marker="D", color=colour))
        if best is not None or promotions:
            handles.append(key("their training loss", linestyle="-", lw=0.9, color=MUTED))
        axes.set_xlabel(f"training FLOPs ({facts.study.convention})")
        axes.set_ylabel(LOSS_LABEL)
        theme.legend_below(figure, handles)

    alt = (
        "Learning curves on logarithmic axes: validation loss against training FLOPs of every run, "
        "the best trial and the promotions highlighted."
    )
    return Chart("learning_curves", _curves_title(facts), alt, draw, 4.3)


def _val_curve(facts: Facts, run: Run) -> tuple[FloatArray, FloatArray] | None:
    curve = facts.curve(run)
    if curve is None:
        return None
    there = np.isfinite(curve.val_loss_nats) & (curve.flops > 0) & (curve.val_loss_nats > 0)
    if not there.any():
        return None
    return curve.flops[there], curve.val_loss_nats[there]


def _highlight(
    axes: Axes,
    facts: Facts,
    run: Run,
    curve: tuple[FloatArray, FloatArray],
    colour: str,
    marker: str = "o",
) -> None:
    """Validation loss as a line with markers, training loss thin beside it."""
    whole = facts.curve(run)
    if whole is not None:
        axes.plot(whole.flops, whole.train_loss_nats, color=colour, lw=0.9, alpha=0.6)
    axes.plot(*curve, color=colour, lw=2, marker=marker, ms=4.5, path_effects=theme.halo(3.5))
    axes.plot(*curve, color=colour, lw=0, marker=marker, ms=4.5, mew=0)


def _curves_title(facts: Facts) -> str:
    best, promoted = facts.best, facts.promoted
    if promoted is not None:
        parent = facts.trial_of(promoted)
        return (
            f"{promoted.scale:g} times the budget took trial {parent.number} from "
            f"{loss(parent.val_loss_nats, 3)} to {loss(promoted.val_loss_nats, 3)} nats"
        )
    if best is None:
        return "No trial is complete yet: curves so far"
    if len(facts.ranked) < 3:
        return f"Trial {best.number} ended at {loss(best.val_loss_nats, 3)} nats"
    middle = float(np.median([final_loss(r) for r in facts.ranked]))
    return (
        f"Trial {best.number} ended {middle - final_loss(best):.3f} nats below the median of "
        f"{len(facts.ranked)} trials"
    )


_REASON_LOOKS = {
    "over_budget": ("over budget", "^", PALETTE["promoted"]),
    "out_of_memory": ("too much memory", "s", PALETTE["purple"]),
    "too_many_epochs": ("too many epochs", "D", PALETTE["amber"]),
    "too_little_validation_data": ("too little validation data", "P", PALETTE["green"]),
    "duplicate": ("duplicate", "X", PALETTE["brown"]),
    "no_run": ("no run in the table", "P", PALETTE["cyan"]),
    "invalid_value": ("invalid value", "v", PALETTE["cyan"]),
    "invalid_shape": ("invalid shape", "<", PALETTE["ink"]),
}


def proposals(facts: Facts) -> Chart | NoChart:
    """Admitted and rejected proposals over parameters × tokens, with the budget."""
    placed = [r for r in facts.rejections if r.n_params and r.tokens]
    if not facts.trials and not placed:
        why = "No proposal has a size and a number of tokens that could be placed in a plane."
        return NoChart("proposals", why)
    unplaced = len(facts.rejections) - len(placed)
    study = facts.study
    if not facts.trials:
        title = f"All {plural(len(facts.rejections), 'proposal')} were refused"
    elif facts.rejections:
        title = (
            f"{len(facts.rejections)} of {facts.n_proposals} proposals were refused before they "
            f"cost anything; the rest keep to {flops(study.budget_flops)} FLOPs"
        )
    else:
        title = (
            f"All {plural(len(facts.trials), 'proposal')} kept to the budget of "
            f"{flops(study.budget_flops)} FLOPs"
        )

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        sizes = np.array([r.n_params for r in facts.trials], dtype=float)
        tokens = np.array([r.planned_tokens for r in facts.trials], dtype=float)
        all_sizes = [*sizes, *(float(r.n_params or 1) for r in placed)]
        all_tokens = [*tokens, *(float(r.tokens or 1) for r in placed)]
        x_limits, y_limits = padded_log_limits(all_sizes), padded_log_limits(all_tokens, 0.1)
        log_axis(axes, "x", x_limits, count)
        log_axis(axes, "y", y_limits, count)
        handles = []
        if not any(has_sampled_softmax(r) for r in facts.trials):  # whose tokens do not cost all N
            grid = np.geomspace(*x_limits, 50)
            axes.plot(grid, study.budget_flops / (6 * grid), color=MUTED, lw=1.2, ls=(0, (4, 3)))
            line = f"6·N·D = {flops(study.budget_flops)}"
            handles.append(key(line, linestyle="--", color=MUTED))
        for reason, (label, marker, colour) in _REASON_LOOKS.items():
            these = [r for r in placed if r.reason == reason]
            if these:
                xs = np.array([r.n_params for r in these], dtype=float)
                ys = np.array([r.tokens for r in these], dtype=float)
                dots(axes, xs, ys, marker=marker, color=colour, markersize=5, alpha=0.85)
                handles.append(key(f"{label} ({len(these)})", marker=marker, color=colour))
        dots(axes, sizes, tokens, color=INK, markersize=4, alpha=0.85)
        handles.insert(0, key(f"admitted ({len(sizes)})", marker="o", color=INK))
        if facts.best is not None:
            best = facts.best
            mark_best(axes, best.n_params, best.planned_tokens)
            handles.insert(1, key(f"best (trial {best.number})", marker="o", color=BEST))
        if unplaced:
            theme.remark(axes, f"not shown: {unplaced} without a valid size")
        axes.set_xlabel("parameters (embeddings counted)")
        axes.set_ylabel("training tokens")
        theme.legend_below(figure, handles)

    alt = (
        "Proposals over parameters and training tokens on logarithmic axes: admitted ones on the "
        "budget line, rejected ones by reason."
    )
    return Chart("proposals", title, alt, draw, 4.6)


def schedule(facts: Facts) -> Chart | NoChart:
    """Learning rate over the steps of the best run, computed from its configuration."""
    best = facts.best
    if best is None:
        return NoChart("schedule", "No trial is complete yet, so there is no best schedule.")
    if not facts.has_learning_rate(best):
        return NoChart("schedule", f"No learning rate of trial {best.number} was recorded.")
    config = run_config(best)
    steps, warmup = config.steps, config.warmup_steps
    get_lr = config.lr_schedule()
    rise = f"rose to {rate(config.max_lr)} in {plural(warmup, 'step')}" if warmup else (
        f"began at {rate(config.max_lr)}"
    )  # fmt: skip
    title = (
        f"The learning rate of trial {best.number} {rise}, then fell to {rate(config.final_lr)} "
        f"by step {steps:,}"
    )

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        at = np.unique(np.concatenate([np.linspace(0, steps, 400), [warmup]]).round())
        axes.plot(at, [get_lr(int(t)) for t in at], color=BEST, lw=2)
        linear_axis(
            axes, "x", (-0.02 * steps, 1.02 * steps), lambda v: f"{v:,.0f}", 6, integer=True
        )
        linear_axis(axes, "y", (0.0, 1.12 * max(config.max_lr, 1e-12)), rate, 6)
        axes.axvspan(0, warmup, color=GOOD, alpha=0.25, lw=0)
        handles = [key("learning rate", linestyle="-", lw=2, color=BEST)]
        if warmup:
            label = f"warm-up ({100 * warmup / steps:.2g} % of the steps)"
            handles.append(Patch(color=GOOD, alpha=0.25, label=label))  # type: ignore[arg-type]
        axes.set_xlabel("optimiser step")
        axes.set_ylabel("learning rate")
        theme.legend_below(figure, handles)

    decay = {"cosine": "half a cosine", "linear": "a line", "wsd": "constant and a line"}
    alt = (
        "Learning rate over the steps of the best trial: linear warm-up, then "
        f"{decay[config.schedule]}."
    )
    return Chart("schedule", title, alt, draw, 3.4)
