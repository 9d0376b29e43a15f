"""`budgetsweep search`: its settings from the flags, its progress and outcome on the screen."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from budgetsweep.cli.plan import print_rungs, print_time_plan
from budgetsweep.cli.promote import print_answers
from budgetsweep.config import (
    load_yaml,
    parse,
)
from budgetsweep.errors import ConfigError
from studies.database.run_kind import RunKind
from studies.simulation.worlds import mark
from trainer.data.config import DataConfig

if TYPE_CHECKING:
    from studies.planning import TimePlan
    from studies.settings import SearchSettings

DRY_RUN_PROPOSALS = 10_000


def search_settings(
    *,
    space_file: Path | None,
    source: str,
    val_data: str | None,
    text_field: str,
    tokenizer: str | None,
    budget: int | None,
    convention: str | None,
    sampler: str | None,
    seed: int | None,
    prune: bool,
    rungs: str | None,
    for_scale: float | None,
    trials: int,
    simulate: str | None,
    replay: Path | None,
    overrides: tuple[str, ...],
    **rest: Any,
) -> SearchSettings:
    """Settings from the flags and the space file; flags win."""
    from studies.promotion.promote import DEFAULT_SCALE
    from studies.settings import SearchSettings, plans_rungs
    from studies.space.rungs import DEFAULT_RUNGS, Rungs
    from studies.space.search_space import space_from_dict

    space = None
    if space_file is not None:
        space = space_from_dict(load_yaml(space_file), str(space_file))
        budget = budget or (int(space.budget) if space.budget else None)
        convention = convention or space.convention
        sampler = sampler or ("tpe" if space.method == "bayes" else space.method)
        seed = space.seed if seed is None else seed
        space = space.model_copy(
            update={"budget": None, "convention": None, "method": None, "seed": None}
        )
    table = None
    if replay is not None:
        from studies.simulation.replay import read_table

        if source != "c4" or val_data is not None or tokenizer is not None:
            raise ConfigError(
                "--replay: nothing is read but the table; leave out --data, --tokenizer"
            )
        table = read_table(replay)
    if simulate is not None and (source != "c4" or val_data is not None):
        raise ConfigError("--simulate: a simulated search reads no text; leave out --data")
    data = parse(
        DataConfig,
        {"source": source, "validation": val_data, "text_field": text_field},
        "--data",
    )
    is_default = rungs is None
    if is_default and replay is None and not prune and plans_rungs(sampler, trials):
        rungs, for_scale = DEFAULT_RUNGS, for_scale or DEFAULT_SCALE
    return SearchSettings(
        space=space,
        data=data,
        trials=trials,
        for_scale=for_scale,
        is_default_plan=is_default,
        tokenizer=tokenizer or ("bytes" if source == "demo" else "gpt2"),
        budget_flops=10**15 if budget is None else budget,
        convention=convention or "nanogpt",  # type: ignore[arg-type]
        sampler=sampler or "law",  # type: ignore[arg-type]
        seed=seed or 0,
        simulate=simulate,
        replay=table,
        pruning=prune,
        rungs=Rungs.parse(rungs or "1"),
        overrides=tuple(overrides),
        **rest,
    )


def search_command(
    settings: SearchSettings, console: Console, signals: Stopper, *, yes: bool
) -> bool:
    """Run a search with progress; True when there is nothing left to do."""
    from studies.database.connection import is_new_file
    from studies.database.store import Store
    from studies.search import Hooks, search

    n_done = 0
    settings.resolved_space()  # a budget or space that makes no sense leaves no database behind
    if not is_new_file(settings.storage):
        with Store.open(settings.storage, create=not settings.points_from) as store:
            study = store.find_study(settings.study_name)
            if study is not None:
                trials = store.runs(study.id, kind=RunKind.TRIAL)
                n_done = sum(run.status.is_finished for run in trials)
                console.print(
                    f"continuing study {escape(study.name)}: {n_done} trials done", highlight=False
                )
                settings = settings.continuing(study)
    print_notice(console, settings.world)
    if settings.replay is not None:
        console.print(escape(settings.replay.description), highlight=False)
        for note in settings.replay.table.notes:
            console.print(escape(note), highlight=False)
    if settings.world is not None and n_done == 0:  # no time to plan, which would say it otherwise
        print_rungs(settings, console)
    display = RunsDisplay(
        console,
        n_trials=settings.trials,
        n_done=n_done,
        budget_flops=settings.budget_flops,
        title=settings.study_name + mark(settings.world),
    )

    def confirm(plan: TimePlan) -> bool:
        print_time_plan(plan, settings, console)
        if plan.sensible_budget_flops is None or yes or not console.is_terminal:
            return True
        import click

        return click.confirm("start all the same?", default=False)

    hooks = Hooks(
        observer=display,
        should_stop=signals.should_stop,
        should_kill=signals.should_kill,
        confirm=confirm,
        on_prepare=PrepareDisplay(console),
    )
    # The live view starts with the first trial: a question may come before it.
    with display:
        outcome = search(settings, hooks)
    console.print(f"{outcome.reason}; {outcome.n_rejected} proposals rejected", highlight=False)
    if outcome.best is not None and outcome.best.val_loss_nats is not None:
        best = outcome.best
        console.print(
            f"best{mark(settings.world)}: trial {best.number}  val loss {best.val_loss_nats:.4f}  "
            f"PPL {best.val_ppl:,.1f}  {settings_text(best.params)}",
            highlight=False,
        )
    if outcome.fit is not None and outcome.best is not None:
        print_answers(outcome.fit, console)
    if not outcome.finished:
        console.print("the same command again continues this search", highlight=False)
    return outcome.finished


def dry_run_command(settings: SearchSettings, console: Console) -> None:
    """Print what 10,000 proposals would be."""
    from studies.dry_run import dry_run
    from studies.planning import charge_per_token

    n = DRY_RUN_PROPOSALS
    result = dry_run(settings, n)
    sample = result.sample
    print_notice(console, settings.world)
    console.print(
        f"{n:,} random proposals at {flops(settings.budget_flops)} FLOPs "
        f"({settings.convention}): {100 * sample.admitted_share:.1f} % admitted",
        highlight=False,
    )
    for reason, number in sample.reasons().most_common():
        console.print(
            f"  {100 * number / n:.1f} % {reason}: for example, {escape(sample.example(reason))}",
            highlight=False,
        )
    if not sample.admitted:
        return
    table = Table("", "least", "median", "most", box=None, pad_edge=False)
    configs = [admitted.config for admitted in sample.admitted]

    def row(name: str, values: list[float], show: Any) -> None:
        values = sorted(values)
        table.add_row(name, show(values[0]), show(values[len(values) // 2]), show(values[-1]))

    row("parameters", [c.n_params for c in configs], count)
    row("width n_embd", [c.model.n_embd for c in configs], count)
    row("layers", [c.model.depth for c in configs], count)
    row("exact FLOPs a token", [charge_per_token(c) for c in configs], flops)
    row("training tokens", [c.total_tokens for c in configs], count)
    row("optimiser steps", [c.steps for c in configs], count)
    row("FLOPs, share of budget", [a.charge_flops / settings.budget_flops for a in sample.admitted],
        lambda share: f"{100 * share:.2f} %")  # fmt: skip
    if settings.world is None:
        row("memory", [a.memory_bytes or 0 for a in sample.admitted], gib)
    if not isinstance(result.speed, str):
        row("time of a trial", [result.speed.seconds(c) for c in configs], duration)
    console.print(table)
    if isinstance(result.speed, str):
        console.print(f"time was not measured: {result.speed}", highlight=False)
    elif result.plan is not None:
        print_time_plan(result.plan, settings, console)
