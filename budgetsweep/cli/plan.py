"""What a search will cost, said before its first trial."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console

from budgetsweep.cli.display import duration, flops

if TYPE_CHECKING:
    from studies.planning import TimePlan
    from studies.settings import SearchSettings


def print_time_plan(plan: TimePlan, settings: SearchSettings, console: Console) -> None:
    """How long a trial and the search take here, and what all runs cost."""
    low, high = plan.trial_seconds_range
    console.print(
        f"measured here: a trial of {flops(settings.budget_flops)} FLOPs takes about "
        f"{duration(plan.trial_seconds)} ({duration(low)} to {duration(high)}), "
        f"{plan.n_trials} trials about {duration(plan.search_seconds)}",
        highlight=False,
    )
    print_rungs(settings, console)
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
    for rung in rungs.of_finalists:
        told += (
            f"; {rungs.finalists(rung, n)} of the best again at {float(rung):g} times the budget"
        )
    console.print(told, highlight=False)
