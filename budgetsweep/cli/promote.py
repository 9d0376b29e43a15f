"""What `promote` does once its words are parsed, and the two answers of a search."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from budgetsweep.cli.display import (
    PrepareDisplay,
    RunsDisplay,
    Stopper,
    count,
    duration,
    flops,
    gib,
    print_notice,
    settings_text,
)
from studies.simulation.worlds import is_replayed, mark, world_of
from trainer.events import RunStatus

if TYPE_CHECKING:
    from studies.database.tables import Prediction
    from studies.promotion.promote import PromoteSettings, PromotionPlan
    from studies.scaling.prediction import Candidate, StudyFit

LONG_SECONDS = 6 * 3600.0
"""A promotion longer than this is asked about on a terminal."""


def promote_command(
    settings: PromoteSettings, console: Console, signals: Stopper, *, yes: bool
) -> bool:
    """Run a promotion with progress; True when it is complete."""
    from studies.promotion.promote import PromoteHooks, promote

    display = RunsDisplay(console, n_trials=1, n_done=0, budget_flops=0, title="promotion")

    def on_plan(plan: PromotionPlan) -> bool:
        print_notice(console, plan.config.world)
        _print_promotion_plan(plan, console)
        long = plan.seconds is not None and plan.seconds > LONG_SECONDS
        if not long or yes or not console.is_terminal:
            return True
        import click

        return click.confirm("start all the same?", default=False)

    hooks = PromoteHooks(
        observer=display,
        should_stop=signals.should_stop,
        should_kill=signals.should_kill,
        on_plan=on_plan,
        on_prepare=PrepareDisplay(console),
    )
    with display:
        outcome = promote(settings, hooks)
    run, trial = outcome.run, outcome.trial
    if run is None or run.status in (RunStatus.QUEUED, RunStatus.INTERRUPTED):
        console.print("the same command again continues this promotion", highlight=False)
        return False
    if run.status == RunStatus.FAILED:
        console.print(f"the promotion failed: {escape(run.reason or '')}", highlight=False)
        return False
    assert run.val_loss_nats is not None
    assert trial.val_loss_nats is not None
    world = world_of(run.config)
    files = "config.yaml, eval.json, curve.csv"
    console.print(
        f"promoted trial {trial.number}{mark(world)}: val loss "
        f"{trial.val_loss_nats:.4f} -> {run.val_loss_nats:.4f}, PPL {trial.val_ppl:,.1f} -> "
        f"{run.val_ppl:,.1f}\n{run.output_dir}: {files if world else f'model.pt, {files}'}",
        highlight=False,
    )
    if outcome.predicted is not None:
        predicted = outcome.predicted
        inside = predicted.low_nats <= run.val_loss_nats <= predicted.high_nats
        console.print(
            f"predicted {predicted.val_loss_nats:.4f}: off by "
            f"{run.val_loss_nats - predicted.val_loss_nats:+.4f} nats, "
            f"{'inside' if inside else 'outside'} the interval "
            f"({predicted.low_nats:.4f} to {predicted.high_nats:.4f})",
            highlight=False,
        )
    if outcome.regret is not None:
        console.print(escape(outcome.regret.words), highlight=False)
    return True


def _print_promotion_plan(plan: PromotionPlan, console: Console) -> None:
    config, rule = plan.config, plan.rescaling
    factor = config.max_lr / float(plan.selection.trial.config["max_lr"])
    epochs = "" if plan.epochs is None else f", {plan.epochs:.2f} epochs of the data"
    memory = "" if plan.memory_bytes is None else f", about {gib(plan.memory_bytes)} of memory"
    time = "" if plan.seconds is None else f", about {duration(plan.seconds)} here"
    selection = plan.selection
    if selection.fit.refusal is not None:
        console.print(f"no prediction: {escape(selection.fit.refusal)}", highlight=False)
    elif selection.selected_by == "predicted":
        console.print(_why(selection.fit), highlight=False)
    console.print(
        f"promoting trial {selection.trial.number}: {flops(plan.charge_flops)} of "
        f"{flops(plan.budget_flops)} FLOPs, {count(config.total_tokens)} tokens in "
        f"{config.steps:,} steps of {config.tokens_per_step:,}{epochs}{memory}{time}",
        highlight=False,
    )
    if not is_replayed(config.world):  # of whose runs no other setting is known
        console.print(
            f"for {rule.tokens_ratio:.3g} times the tokens: batch x{rule.batch_factor}, "
            f"learning rate x{factor:.3g}, {config.warmup_steps:,} steps of warm-up, weight decay "
            "kept; "
            f"{settings_text(plan.changes)}",
            highlight=False,
        )
    if plan.predicted is not None:
        console.print(f"predicted: {_loss_text(plan.predicted)}, on record", highlight=False)


def print_answers(fit: StudyFit, console: Console) -> None:
    """The best at the search's budget and the best predicted at the larger one, side by side."""
    if fit.refusal is not None or fit.choice is None:
        why = fit.refusal or "no trial had the whole budget"
        console.print(
            f"which trial to promote by {fit.scale:g} is not predicted: {escape(why)}",
            highlight=False,
        )
        return
    table = Table("", "trial", "parameters", "at this budget", f"at {fit.scale:g} x (80 %)",
                  box=None, pad_edge=False)  # fmt: skip
    by_number = {candidate.number: candidate for candidate in fit.candidates}
    for name, number in (
        ("measured best", fit.choice.measured),
        ("predicted best", fit.choice.predicted),
    ):
        c = by_number[number]
        here = f"{c.at_budget_nats:.4f}" + ("" if c.measured_nats is not None else " (predicted)")
        table.add_row(name, str(number), count(c.n_params), here, _interval(c))
    console.print(table)
    console.print(_why(fit), highlight=False)


def _why(fit: StudyFit) -> str:
    choice = fit.choice
    if choice is None:
        return f"trial {fit.candidates[0].number} is predicted best at {fit.scale:g} x the budget"
    if choice.measured == choice.predicted:
        return f"trial {choice.measured} is the best here and predicted best at {fit.scale:g} x"
    return (
        f"trial {choice.measured} instead of {choice.predicted} would cost "
        f"{choice.measured_costs_nats:.3f} nats at {fit.scale:g} x "
        f"({choice.measured_costs_low:.3f} to {choice.measured_costs_high:.3f}), "
        f"{choice.predicted} instead of {choice.measured} {choice.predicted_costs_nats:.3f} here; "
        "promote takes the predicted best, --select measured the other"
    )


def _interval(candidate: Candidate) -> str:
    return f"{candidate.loss_nats:.3f} ({candidate.low_nats:.3f} to {candidate.high_nats:.3f})"


def _loss_text(told: Prediction) -> str:
    return (
        f"val loss {told.val_loss_nats:.3f} ({told.low_nats:.3f} to {told.high_nats:.3f}), PPL "
        f"{math.exp(told.val_loss_nats):,.1f} ({math.exp(told.low_nats):,.1f} to "
        f"{math.exp(told.high_nats):,.1f}; {100 * told.level:.0f} %), "
        f"{told.extrapolation:.3g} times the largest run fitted"
    )
