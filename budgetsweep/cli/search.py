"""`budgetsweep search`: its flags, the settings they make, progress and outcome.

An option has the name of its field of `SearchSettings`, so that what is given arrives by itself.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from budgetsweep.cli.data import data_settings
from budgetsweep.cli.options import (
    FILE,
    Flops,
    GroupedCommand,
    data_options,
    device_option,
    options,
    points_from_option,
    runs_dir_option,
    set_option,
    source_option,
    storage_options,
    threads_option,
    yes_option,
)
from budgetsweep.cli.promote import print_answers
from budgetsweep.cli.signals import Signals
from budgetsweep.errors import ConfigError
from budgetsweep.formats import count, duration, flops, gib

if TYPE_CHECKING:
    from rich.console import Console

    from studies.planning import TimePlan
    from studies.settings import SearchSettings

CONVENTION_NAMES = ("nanogpt", "matmul", "mac")
SAMPLER_NAMES = ("tpe", "gp", "random", "qmc", "grid", "law")
WORLD_NAMES = ("porian2024-refinedweb", "hoffmann2022", "besiroglu2024")
DRY_RUN_PROPOSALS = 10_000

budget_options = options(
    click.option(
        "--budget", "budget_flops", type=Flops(), help="Training FLOPs of a trial [default: 1e15]."
    ),
    click.option(
        "--convention", type=click.Choice(CONVENTION_NAMES),
        help="How FLOPs are counted [default: nanogpt].",
    ),
    click.option(
        "--trials", type=click.IntRange(1), default=32, show_default=True, help="Trials in total."
    ),
    click.option("--hours", type=float, help="Stop after so many hours."),
    click.option(
        "--total-flops", type=Flops(), help="Stop before the study spends more than this."
    ),
    click.option(
        "--rungs", metavar="R,R,…",
        help="Budget levels of the search, as multiples of --budget: a scaling law needs several; "
        "1 looks for the best at the budget alone [default: 0.1,0.3,1 with --sampler law and 12 "
        "trials].",
    ),
    click.option(
        "--for-scale", type=float,
        help="Search for the best at so many times the budget, by its predicted loss [default: "
        "100 with the default rungs].",
    ),
    heading="Budget",
)  # fmt: skip
search_options = options(
    click.option(
        "--space", type=FILE, help="YAML file with `parameters:` [default: built in, fits the "
        "budget].",
    ),
    click.option("--sampler", type=click.Choice(SAMPLER_NAMES), help="[default: law]"),
    click.option(
        "--seed", type=click.IntRange(0, 2**32 - 1), help="Seed of proposals and runs [default: 0]."
    ),
    click.option(
        "--prune", "pruning", is_flag=True,
        help="Stop trials below the median at equal budget shares.",
    ),
    points_from_option,
    set_option,
    click.option(
        "--simulate", is_flag=False, flag_value=WORLD_NAMES[0], default=None, metavar="[WORLD]",
        help="Train nothing: losses come from a published scaling law. WORLD is one of "
        f"{', '.join(WORLD_NAMES)} [the first], or drawn-7 (any number): constants drawn at "
        "random.",
    ),
    click.option(
        "--replay", type=FILE, metavar="RUNS.csv",
        help="Train nothing: losses are those of a table of finished runs, sizes the ones in it.",
    ),
    heading="Search",
)  # fmt: skip
hardware_options = options(
    device_option,
    click.option(
        "--workers", type=click.IntRange(1, 256),
        help="Trials at a time: spread over the GPUs, or a CPU's cores divided [default: 1].",
    ),
    click.option(
        "--trials-per-gpu", type=click.IntRange(1, 64), metavar="N",
        help="Trials at a time on each GPU, in place of --workers.",
    ),
    threads_option,
    heading="Hardware",
)  # fmt: skip
output_options = options(
    storage_options,
    runs_dir_option,
    click.option(
        "--keep", type=click.Choice(["best", "all", "none"]), default="best", show_default=True,
        help="Whose model.pt stays on disk.",
    ),
    click.option("--dry-run", is_flag=True, help="Sample 10,000 proposals; train nothing."),
    yes_option,
    heading="Output",
)  # fmt: skip


@click.command("search", cls=GroupedCommand)
@budget_options
@search_options
@options(source_option, data_options, heading="Data")
@hardware_options
@output_options
def search_command(dry_run: bool, yes: bool, **given: Any) -> None:
    """Search for the best configuration within a budget, or continue a search.

    The same command again continues: finished trials stay, interrupted ones resume.
    """
    from budgetsweep.cli.display import new_console

    settings, console = search_settings(**given), new_console()
    if dry_run:
        _dry_run(settings, console)
        return
    with Signals() as signals:
        finished = _search(settings, console, signals, yes=yes)
    if not finished:
        sys.exit(130 if signals.should_stop() else 0)


def search_settings(
    *, space: Path | None, source: str, validation: str | None, text_field: str,
    tokenizer: str | None, rungs: str | None, simulate: str | None, replay: Path | None,
    **rest: Any,
) -> SearchSettings:  # fmt: skip
    """Settings from the flags and the space file; flags win.

    Named are those that need work; `rest` has the names of their fields, None: the default.
    """
    from model.flops import Convention
    from studies.promotion.promote import DEFAULT_SCALE
    from studies.settings import SearchSettings, plans_rungs
    from studies.simulation.backend import Simulated
    from studies.simulation.replay import Replay
    from studies.space.rungs import DEFAULT_RUNGS, Rungs

    given = {name: value for name, value in rest.items() if value is not None}
    names_data = source != "c4" or validation is not None
    if replay is not None:
        if names_data or tokenizer is not None:
            raise ConfigError(
                "--replay: nothing is read but the table; leave out --data, --tokenizer"
            )
        if simulate is not None:
            raise ConfigError("--replay: losses are the table's: leave out --simulate")
        given["backend"] = Replay(replay)
    if simulate is not None:
        if names_data:
            raise ConfigError("--simulate: a simulated search reads no data; leave out --data")
        given["backend"] = Simulated(simulate)
    if space is not None:
        given = _of_space(space) | given
    if "convention" in given:
        given["convention"] = Convention(given["convention"])
    is_default = rungs is None
    plans = plans_rungs(given.get("sampler"), given["trials"]) and not given.get("pruning")
    if is_default and plans and replay is None:
        rungs = DEFAULT_RUNGS
        given.setdefault("for_scale", DEFAULT_SCALE)
    data, encoding = data_settings(source, validation, text_field, tokenizer)
    return SearchSettings(
        data=data, tokenizer=encoding, rungs=Rungs.parse(rungs or "1"),
        is_default_plan=is_default, **given,
    )  # fmt: skip


def _of_space(path: Path) -> dict[str, Any]:
    """What a space file says, by the names of the settings."""
    from budgetsweep.config import load_yaml
    from studies.space.search_space import space_from_dict

    space = space_from_dict(load_yaml(path), str(path))
    said = {
        "budget_flops": int(space.budget) if space.budget else None,
        "convention": space.convention,
        "sampler": "tpe" if space.method == "bayes" else space.method,
        "seed": space.seed,
        "space": space.model_copy(
            update=dict.fromkeys(("budget", "convention", "method", "seed"))
        ),
    }  # fmt: skip
    return {name: value for name, value in said.items() if value is not None}


def _search(settings: SearchSettings, console: Console, signals: Signals, *, yes: bool) -> bool:
    """Run a search with progress; True when there is nothing left to do."""
    from budgetsweep.cli.display import prepare_display, settings_text
    from studies.database.connection import is_new_file
    from studies.database.run_kind import RunKind
    from studies.database.store import Store
    from studies.search import Hooks, search
    from studies.trackers import track
    from studies.trackers.base import Session

    n_done = 0
    settings.resolved_space()  # a budget or space that makes no sense leaves no database behind
    if not is_new_file(settings.storage):
        with Store.open(settings.storage, create=not settings.points_from) as store:
            study = store.find_study(settings.study_name)
            if study is not None:
                trials = store.runs(study.id, kind=RunKind.TRIAL)
                n_done = sum(run.status.is_finished for run in trials)
                console.print(f"continuing study {study.name}: {n_done} trials done")
                settings = settings.continuing(study)
    if n_done == 0:
        _print_rungs(settings, console)

    def confirm(plan: TimePlan) -> bool:
        _print_time_plan(plan, settings, console)
        if plan.sensible_budget_flops is None or yes or not console.is_terminal:
            return True
        return click.confirm("Continue anyway?", default=False)

    job = Session(settings.study_name, settings.budget_flops, settings.trials, n_done)
    with track(job, console) as trackers:
        outcome = search(
            settings,
            Hooks(
                observer=trackers,
                should_stop=signals.should_stop,
                should_kill=signals.should_kill,
                confirm=confirm,
                on_prepare=prepare_display(console),
            ),
        )
    console.print(f"{outcome.reason}; {outcome.n_rejected} proposals rejected")
    best = outcome.best
    if best is not None and best.val_loss_nats is not None:
        console.print(
            f"best: trial {best.number}  val loss {best.val_loss_nats:.4f}  "
            f"PPL {best.val_ppl:,.1f}  {settings_text(best.params)}"
        )
    if outcome.fit is not None and best is not None:
        print_answers(outcome.fit, console)
    if not outcome.finished:
        console.print("the same command again continues this search")
    return outcome.finished


def _dry_run(settings: SearchSettings, console: Console) -> None:
    """Print what 10,000 proposals would be."""
    from budgetsweep.cli.display import columns
    from studies.planning import TimePlan, dry_run
    from studies.space.sample import charge_per_token

    n = DRY_RUN_PROPOSALS
    sample, plan = dry_run(settings, n)
    console.print(
        f"{n:,} random proposals at {flops(settings.budget_flops)} FLOPs "
        f"({settings.convention}) on {settings.study_data.source}: "
        f"{100 * sample.admitted_share:.1f} % admitted"
    )
    for reason, number in sample.reasons().most_common():
        console.print(f"  {100 * number / n:.1f} % {reason}: e.g. {sample.example(reason)}")
    if not sample.admitted:
        return
    table = columns("", "min", "median", "max")
    configs = [admitted.config for admitted in sample.admitted]

    def row(name: str, values: list[float], show: Callable[[float], str]) -> None:
        values = sorted(values)
        table.add_row(name, show(values[0]), show(values[len(values) // 2]), show(values[-1]))

    row("parameters", [c.n_params for c in configs], count)
    row("width n_embd", [c.model.n_embd for c in configs], count)
    row("layers", [c.model.depth for c in configs], count)
    row("exact FLOPs per token", [charge_per_token(c) for c in configs], flops)
    row("training tokens", [c.total_tokens for c in configs], count)
    row("optimiser steps", [c.steps for c in configs], count)
    row("FLOPs, share of budget", [a.charge_flops / settings.budget_flops for a in sample.admitted],
        lambda share: f"{100 * share:.2f} %")  # fmt: skip
    memory = [a.memory_bytes for a in sample.admitted if a.memory_bytes is not None]
    if memory:
        row("memory", [float(n_bytes) for n_bytes in memory], gib)
    if isinstance(plan, TimePlan):
        row("time of a trial", [plan.speed.seconds(c) for c in configs], duration)
    console.print(table)
    if isinstance(plan, TimePlan):
        _print_time_plan(plan, settings, console)
        _print_rungs(settings, console)
    else:
        console.print(f"time was not measured: {plan}")


def _print_time_plan(plan: TimePlan, settings: SearchSettings, console: Console) -> None:
    """How long a trial and the search take here."""
    low, high = plan.trial_seconds_range
    console.print(
        f"measured here: a trial of {flops(settings.budget_flops)} FLOPs takes about "
        f"{duration(plan.trial_seconds)} ({duration(low)} to {duration(high)}), "
        f"{settings.trials} trials about {duration(plan.search_seconds)}"
    )
    if plan.sensible_budget_flops is not None:
        console.print(
            f"that is very long for this device; --budget {flops(plan.sensible_budget_flops)} "
            "would take about half an hour. The search can be stopped and continued at any time"
        )


def _print_rungs(settings: SearchSettings, console: Console) -> None:
    """What all runs of the search cost in total, where they have several budgets."""
    rungs, n = settings.rungs, settings.trials
    if len(rungs.multiples) == 1:
        return
    budgets = float(rungs.budgets(n))
    line = f"rungs {rungs}: all runs cost {budgets:.3g} budgets in total, "
    line += f"{flops(int(budgets * settings.budget_flops))} FLOPs"
    for rung in rungs.of_finalists:
        line += (
            f"; {rungs.finalists(rung, n)} of the best again at {float(rung):g} times the budget"
        )
    console.print(line)
