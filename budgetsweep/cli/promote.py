"""`budgetsweep promote`: the final run, and what a search says of which trial to take."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from budgetsweep.cli.options import (
    FOLDER,
    cache_dir_option,
    device_option,
    points_from_option,
    runs_dir_option,
    set_option,
    storage_options,
    yes_option,
)
from budgetsweep.cli.signals import Signals
from budgetsweep.formats import count, duration, flops, gib

if TYPE_CHECKING:
    from rich.console import Console

    from studies.database.tables import Prediction
    from studies.promotion.promote import PromoteSettings, PromotionPlan
    from studies.scaling.prediction import StudyFit

LONG_SECONDS = 6 * 3600.0
"""A promotion longer than this is asked about on a terminal."""


@click.command("promote")
@click.option(
    "--scale", type=float, default=100.0, show_default=True, help="Multiple of the budget."
)
@click.option("--trial", type=click.IntRange(0), help="Trial to promote.")
@click.option(
    "--select", type=click.Choice(["measured", "predicted"]),
    help="The trial that measured best, or whose shape is predicted best at the larger budget "
    "[default: predicted, where the trials carry a prediction].",
)  # fmt: skip
@click.option("--output-dir", type=FOLDER, help="Folder for model.pt …")
@runs_dir_option
@cache_dir_option
@points_from_option
@storage_options
@set_option
@device_option
@yes_option
def promote_command(yes: bool, **given: Any) -> None:
    """Train the final run: a trial's shape with --scale times the search's FLOPs, never more."""
    from budgetsweep.cli.display import new_console
    from studies.promotion.promote import PromoteSettings

    settings = PromoteSettings(**given)
    with Signals() as signals:
        finished = _promote(settings, new_console(), signals, yes=yes)
    if not finished:
        sys.exit(130 if signals.should_stop() else 1)


def _promote(settings: PromoteSettings, console: Console, signals: Signals, *, yes: bool) -> bool:
    """Run a promotion with progress; True when it is complete."""
    from budgetsweep.cli.display import prepare_display
    from studies.promotion.promote import PromoteHooks, promote
    from studies.trackers import track
    from studies.trackers.base import Session
    from trainer.events import RunStatus

    def on_plan(plan: PromotionPlan) -> bool:
        _print_plan(plan, console)
        long = plan.seconds is not None and plan.seconds > LONG_SECONDS
        if not long or yes or not console.is_terminal:
            return True
        return click.confirm("Continue anyway?", default=False)

    with track(Session("promotion"), console) as trackers:
        outcome = promote(
            settings,
            PromoteHooks(
                observer=trackers,
                should_stop=signals.should_stop,
                should_kill=signals.should_kill,
                on_plan=on_plan,
                on_prepare=prepare_display(console),
            ),
        )
    run, trial = outcome.run, outcome.trial
    if run.status in (RunStatus.QUEUED, RunStatus.INTERRUPTED):
        console.print("the same command again continues this promotion")
        return False
    if run.status == RunStatus.FAILED:
        console.print(f"the promotion failed: {run.reason or ''}")
        return False
    assert run.val_loss_nats is not None
    assert trial.val_loss_nats is not None
    assert run.output_dir is not None
    written = (name for name in ("model.pt", "config.yaml", "eval.json", "curve.csv")
               if Path(run.output_dir, name).exists())  # fmt: skip
    console.print(
        f"promoted trial {trial.number}: val loss {trial.val_loss_nats:.4f} -> "
        f"{run.val_loss_nats:.4f}, PPL {trial.val_ppl:,.1f} -> {run.val_ppl:,.1f}\n"
        f"{run.output_dir}: {', '.join(written)}"
    )
    if outcome.predicted is not None:
        predicted = outcome.predicted
        within = predicted.low_nats <= run.val_loss_nats <= predicted.high_nats
        console.print(
            f"predicted {predicted.val_loss_nats:.4f}: off by "
            f"{run.val_loss_nats - predicted.val_loss_nats:+.4f} nats, "
            f"{'within' if within else 'outside'} the interval "
            f"({predicted.low_nats:.4f} to {predicted.high_nats:.4f})"
        )
    if outcome.regret is not None:
        console.print(outcome.regret)
    return True


def _print_plan(plan: PromotionPlan, console: Console) -> None:
    from budgetsweep.cli.display import settings_text

    config, rule, selection = plan.config, plan.rescaling, plan.selection
    factor = config.max_lr / float(selection.trial.config["max_lr"])
    epochs = "" if plan.epochs is None else f", {plan.epochs:.2f} epochs of the data"
    memory = "" if plan.memory_bytes is None else f", about {gib(plan.memory_bytes)} of memory"
    time = "" if plan.seconds is None else f", about {duration(plan.seconds)} here"
    if selection.fit.refusal is not None:
        console.print(f"no prediction: {selection.fit.refusal}")
    elif selection.selected_by == "predicted":
        console.print(_why(selection.fit))
    console.print(
        f"promoting trial {selection.trial.number}: {flops(plan.charge_flops)} of "
        f"{flops(plan.budget_flops)} FLOPs, {count(config.total_tokens)} tokens in "
        f"{config.steps:,} steps of {config.tokens_per_step:,}{epochs}{memory}{time}"
    )
    console.print(
        f"for {rule.tokens_ratio:.3g} times the tokens: batch x{rule.batch_factor}, "
        f"learning rate x{factor:.3g}, {config.warmup_steps:,} steps of warm-up, weight decay "
        f"kept; {settings_text(plan.changes)}"
    )
    if plan.predicted is not None:
        console.print(f"predicted, recorded before the run: {_loss_text(plan.predicted)}")


def print_answers(fit: StudyFit, console: Console) -> None:
    """The best at the search's budget and the best predicted at the larger one, side by side."""
    from budgetsweep.cli.display import columns

    if fit.refusal is not None or fit.choice is None:
        why = fit.refusal or "no trial had the whole budget"
        console.print(f"which trial is best at {fit.scale:g} x the budget is not predicted: {why}")
        return
    table = columns("", "trial", "parameters", "at this budget", f"at {fit.scale:g} x (80 %)")
    by_number = {candidate.number: candidate for candidate in fit.candidates}
    for name, number in (
        ("measured best", fit.choice.measured),
        ("predicted best", fit.choice.predicted),
    ):
        c = by_number[number]
        here = f"{c.at_budget_nats:.4f}" + ("" if c.measured_nats is not None else " (predicted)")
        there = f"{c.loss_nats:.3f} ({c.low_nats:.3f} to {c.high_nats:.3f})"
        table.add_row(name, str(number), count(c.n_params), here, there)
    console.print(table)
    console.print(_why(fit))


def _why(fit: StudyFit) -> str:
    choice = fit.choice
    if choice is None:
        return f"trial {fit.candidates[0].number} is predicted best at {fit.scale:g} x the budget"
    if choice.measured == choice.predicted:
        return f"trial {choice.measured} is the best here and predicted best at {fit.scale:g} x"
    return (
        f"choosing trial {choice.measured} has a regret of {choice.measured_costs_nats:.3f} nats "
        f"at {fit.scale:g} x ({choice.measured_costs_low:.3f} to {choice.measured_costs_high:.3f})"
        f", trial {choice.predicted} one of {choice.predicted_costs_nats:.3f} nats here; "
        "promote takes the predicted best, --select measured the other"
    )


def _loss_text(predicted: Prediction) -> str:
    return (
        f"val loss {predicted.val_loss_nats:.3f} "
        f"({predicted.low_nats:.3f} to {predicted.high_nats:.3f}), PPL "
        f"{math.exp(predicted.val_loss_nats):,.1f} ({math.exp(predicted.low_nats):,.1f} to "
        f"{math.exp(predicted.high_nats):,.1f}; {100 * predicted.level:.0f} %), "
        f"{predicted.extrapolation:.3g} times the largest run fitted"
    )
