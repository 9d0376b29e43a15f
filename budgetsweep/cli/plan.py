"""What a search will cost, said before its first trial."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console

from budgetsweep.formats import duration, flops, gib

if TYPE_CHECKING:
    from studies.planning import TimePlan
    from studies.settings import SearchSettings


def print_time_plan(plan: TimePlan, settings: SearchSettings, console: Console) -> None:
    """How long a trial and the search take here, what all runs cost, what disk they need."""
    low, high = plan.trial_seconds_range
    console.print(
        f"measured here: a trial of {flops(settings.budget_flops)} FLOPs takes about "
        f"{duration(plan.trial_seconds)} ({duration(low)} to {duration(high)}), "
        f"{plan.n_trials} trials about {duration(plan.search_seconds)}",
        highlight=False,
    )
    print_rungs(settings, console)
    if plan.kept_bytes:
        console.print(
            f"checkpoints for the branches need up to {gib(plan.kept_bytes)} of disk; a trial's "
            "are removed with its last branch",
            highlight=False,
        )
    if plan.sensible_budget_flops is not None:
        console.print(
            f"that is very long for this device; --budget {flops(plan.sensible_budget_flops)} "
            "would take about half an hour. The search can be stopped and continued at any time",
            highlight=False,
        )


def print_rungs(settings: SearchSettings, console: Console) -> None:
    """What all runs of the search cost together, where they have several budgets."""
    rungs, n = settings.rungs, settings.trials
    if len(rungs.multiples) == 1:
        return
    budgets = float(rungs.budgets(n))
    told = f"rungs {rungs}: all runs together cost {budgets:.3g} budgets, "
    told += f"{flops(int(budgets * settings.budget_flops))} FLOPs"
    if rungs.cooldown is not None:
        apart = n * float(sum(rungs.of_branches) + 1)
        told += (
            f"; {n * len(rungs.of_branches)} of them are cooldown branches of the {n} trials "
            f"({100 * float(rungs.cooldown):g} % of their steps); trained apart, trials and "
            f"branches would cost {apart:.3g} budgets"
        )
    for rung in rungs.of_finalists:
        told += (
            f"; {rungs.finalists(rung, n)} of the best again at {float(rung):g} times the budget"
        )
    console.print(told, highlight=False)
