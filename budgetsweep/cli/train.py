"""`budgetsweep train`: one configuration, in this process."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from budgetsweep.cli.options import (
    FILE,
    Flops,
    cache_dir_option,
    set_option,
    threads_option,
)
from budgetsweep.cli.signals import Signals
from budgetsweep.errors import ConfigError
from budgetsweep.formats import count, flops
from trainer.events import RunStatus

if TYPE_CHECKING:
    from rich.console import Console

    from trainer.config import RunConfig
    from trainer.driver import Event
    from trainer.events import Command


@click.command("train")
@click.argument("config", type=FILE)
@click.option("--budget", type=Flops(), help="Training FLOPs, for `num_training_steps: fill`.")
@click.option("--data", "source", metavar="SOURCE", help="Data, instead of the file's.")
@cache_dir_option
@threads_option
@set_option
def train_command(
    config: Path, budget: int | None, source: str | None, cache_dir: Path | None,
    threads: int | None, overrides: tuple[str, ...],
) -> None:  # fmt: skip
    """Train one configuration from a YAML file, or continue it."""
    from budgetsweep.cli.display import new_console

    run = run_config(config, budget, overrides, source)
    with Signals() as signals:
        finished = _train(run, new_console(), signals, cache_dir, threads)
    if not finished:
        sys.exit(130 if signals.should_stop() else 1)


def run_config(
    path: Path, budget: int | None, overrides: tuple[str, ...], source: str | None = None
) -> RunConfig:
    """A run's configuration from its YAML file and the flags."""
    from budgetsweep.config import apply_overrides, load_yaml, parse
    from trainer.config import RunConfig

    data = apply_overrides(load_yaml(path), overrides)
    if budget is not None:
        data["budget_flops"] = budget
    if source is not None:
        own = data.get("data")
        data["data"] = {**(own if isinstance(own, dict) else {}), "source": source}
    return parse(RunConfig, data, str(path))


def _train(
    config: RunConfig, console: Console, signals: Signals, cache_dir: Path | None,
    threads: int | None,
) -> bool:  # fmt: skip
    """Train one configuration; True when it is complete."""
    from budgetsweep.cli.display import prepare_display
    from budgetsweep.constraint import Limits, Rejected, admit, fill
    from studies.trackers import track
    from studies.trackers.base import RunView, Session
    from trainer.data.prepare import open_prepared, prepare
    from trainer.driver import drive
    from trainer.events import Point, Progress
    from trainer.hardware.device import configure_threads, detect_device
    from trainer.loop import train_run

    configure_threads(threads)
    config = fill(config)
    prepared = prepare(
        config.data, config.tokenizer_encoding,
        train_tokens=config.wanted_train_tokens,
        val_tokens=config.data.val_tokens, cache_dir=cache_dir,
        on_progress=prepare_display(console),
    )  # fmt: skip
    fixed = config.data.fixed_to(prepared, config.wanted_train_tokens, None)
    config = config.with_changes(data=fixed)
    charge = config.flops_per_step(config.convention) * config.steps
    device = detect_device(config.device)
    tokens = open_prepared(fixed, config.tokenizer_encoding, cache_dir)
    limits = Limits(config.budget_flops or charge, config.convention, device, tokens.facts())
    admitted = admit(config, limits)
    if isinstance(admitted, Rejected):
        raise ConfigError(admitted.detail)
    console.print(
        f"{flops(charge)} FLOPs ({config.convention}), {config.steps:,} steps, "
        f"{count(config.total_tokens)} tokens, {admitted.epochs or 0:.2f} epochs on {device.name}"
    )
    run_dir = Path(config.output_dir)
    view = RunView(0, "run", None, {}, config, charge)
    with track(Session(config.output_dir), console) as trackers:

        def answer(event: Event) -> Command | None:
            if isinstance(event, Progress):
                trackers.run_progress(view, event)
            elif isinstance(event, Point):
                trackers.run_point(view, event)
            trackers.tick()
            return "interrupt" if signals.should_stop() else None

        trackers.run_started(view)
        result = drive(train_run(config, tokens, run_dir), answer)
        trackers.run_ended(view, result, result.val_loss_nats)
    if result.status == RunStatus.INTERRUPTED:
        console.print("the same command again continues this run")
    elif result.status == RunStatus.COMPLETE:
        console.print(f"{run_dir}: model.pt, config.yaml, eval.json")
    return result.status == RunStatus.COMPLETE
