"""What the commands do once their words are parsed: gather settings, call, print."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape

from budgetsweep.cli.display import (
    PrepareDisplay,
    Stopper,
    count,
    duration,
    flops,
    print_notice,
    settings_text,
)
from budgetsweep.config import (
    apply_overrides,
    dump_yaml,
    load_yaml,
    parse,
    write_text_atomically,
)
from budgetsweep.constraint import fill
from budgetsweep.errors import ConfigError
from studies.simulation.worlds import is_replayed, world_of
from trainer.config import RunConfig
from trainer.events import RunStatus
from trainer.hardware.environment import prepare_environment

if TYPE_CHECKING:
    pass

SHOWN_TRIALS = 10


def run_config(
    path: Path, budget: int | None, source: str | None, overrides: tuple[str, ...]
) -> RunConfig:
    """A run's configuration from its YAML file and the flags."""
    data = apply_overrides(load_yaml(path), overrides)
    if budget is not None:
        data["budget_flops"] = budget
    if source is not None:
        own = data.get("data")
        data["data"] = {**(own if isinstance(own, dict) else {}), "source": source}
    return parse(RunConfig, data, str(path))


def train_command(
    config: RunConfig,
    console: Console,
    signals: Stopper,
    *,
    cache_dir: Path | None,
    threads: int | None,
) -> bool:
    """Train one configuration in this process; True when it is complete."""
    if config.trainer == "replayed":
        raise ConfigError(
            "a replayed run is a line of a table, nothing that can be trained; take out the keys "
            "trainer and world, and choose shape, batch_size, seq_len and max_lr yourself"
        )
    if config.trainer == "simulated":
        return _simulate_command(config, console)
    prepare_environment()
    from budgetsweep.constraint import Limits, Rejected, admit, charge_per_step
    from trainer.data.prepare import open_prepared, prepare
    from trainer.events import Point, Progress
    from trainer.hardware.device import configure_threads, detect_device
    from trainer.loop import train_run

    configure_threads(threads)
    config = fill(config)
    prepared = prepare(
        config.data, config.tokenizer_encoding,
        train_tokens=config.wanted_train_tokens,
        val_tokens=config.data.val_tokens, cache_dir=cache_dir,
        on_progress=PrepareDisplay(console),
    )  # fmt: skip
    fixed = config.data.fixed_to(prepared, config.wanted_train_tokens, None)
    config = config.with_changes(data=fixed)
    charge = charge_per_step(config, config.convention) * config.steps
    device = detect_device(config.device)
    tokens = open_prepared(fixed, config.tokenizer_encoding, cache_dir)
    limits = Limits(config.budget_flops or charge, config.convention, device).with_data(tokens)
    answer = admit(config, limits)
    if isinstance(answer, Rejected):
        raise ConfigError(answer.detail)
    run_dir = Path(config.output_dir)
    console.print(
        f"{flops(charge)} FLOPs ({config.convention}), {config.steps:,} steps, "
        f"{count(config.total_tokens)} tokens, {answer.epochs or 0:.2f} epochs on {device.name}",
        highlight=False,
    )
    run = train_run(config, tokens, run_dir)
    command: Any = None
    shown = PlainProgress(console)
    while True:
        try:
            event = run.send(command)
        except StopIteration as stop:
            result = stop.value
            break
        command = "interrupt" if signals.should_stop() else None
        if isinstance(event, Progress):
            shown.progress(event)
        elif isinstance(event, Point) and event.val_loss_nats is not None:
            console.print(
                f"step {event.step:,}/{config.steps:,}  val loss {event.val_loss_nats:.4f}  "
                f"PPL {math.exp(event.val_loss_nats):,.1f}",
                highlight=False,
            )
    if result.status == RunStatus.INTERRUPTED:
        console.print("the same command again continues this run", highlight=False)
    elif result.status == RunStatus.FAILED:
        console.print(f"the run failed: {escape(result.reason or '')}", highlight=False)
    else:
        console.print(
            f"val loss {result.val_loss_nats:.4f}  PPL {result.val_ppl:,.1f}  in "
            f"{duration(result.train_seconds)}; {run_dir}: model.pt, config.yaml, eval.json",
            highlight=False,
        )
    return result.status == RunStatus.COMPLETE


def _simulate_command(config: RunConfig, console: Console) -> bool:
    """Work out what a configuration would come to in its world; True when it is complete."""
    from studies.simulation.simulated_run import simulate_run

    print_notice(console, config.world)
    run_dir = Path(config.output_dir)
    run = simulate_run(fill(config), run_dir)
    while True:
        try:
            next(run)
        except StopIteration as stop:
            result = stop.value
            break
    if result.status == RunStatus.FAILED:
        console.print(f"the run failed: {escape(result.reason or '')}", highlight=False)
    else:
        console.print(
            f"val loss {result.val_loss_nats:.4f}  PPL {result.val_ppl:,.1f}; {run_dir}: "
            "config.yaml, eval.json, curve.csv",
            highlight=False,
        )
    return bool(result.status == RunStatus.COMPLETE)


class PlainProgress:
    """A line of progress now and then."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._last = 0.0

    def progress(self, progress: Any) -> None:
        """Print at most one line in ten seconds."""
        import time

        if time.monotonic() - self._last < 10.0:
            return
        self._last = time.monotonic()
        left = (progress.num_steps - progress.step) * progress.tokens / max(1, progress.step)
        remaining = (
            f", about {duration(left / progress.tokens_per_second)} left"
            if progress.tokens_per_second > 0 and progress.step
            else ""
        )
        self._console.print(
            f"  step {progress.step:,}/{progress.num_steps:,}, "
            f"{count(progress.tokens_per_second)} tokens/s{remaining}",
            highlight=False,
        )


def explain_command(config: RunConfig, console: Console, *, measure: bool, as_json: bool) -> None:
    """Print what a configuration costs."""
    prepare_environment()
    from budgetsweep.cli.flops import explain, print_explanation

    facts = explain(config, measure=measure)
    if as_json:
        console.print_json(json.dumps(facts))
    else:
        print_explanation(facts, console)


def status_command(
    storage: str, study_name: str | None, console: Console, *, as_json: bool
) -> None:
    """Print where a study stands."""
    from studies.status import study_status

    status = study_status(storage, study_name)
    if as_json:
        console.print_json(json.dumps(status))
        return
    best = status["best"]
    print_notice(console, status["simulated"])
    console.print(
        f"study {escape(status['study'])}: budget {flops(status['budget_flops'])} FLOPs a trial "
        f"({status['convention']}), sampler {status['sampler']}, seed {status['seed']}",
        highlight=False,
    )
    counts = ", ".join(f"{n} {name}" for name, n in status["trials"].items()) or "none yet"
    console.print(f"trials: {counts}", highlight=False)
    spent, planned = status["flops_spent"], status["flops_planned"]
    console.print(
        f"FLOPs: {flops(spent)} spent of {flops(planned)} planned, "
        f"{flops(status['flops_recomputed'])} of them recomputed after interruptions",
        highlight=False,
    )
    if best is not None:
        console.print(
            f"best: trial {best['number']}  val loss {best['val_loss_nats']:.4f}  "
            f"PPL {best['val_ppl']:,.1f}  {escape(settings_text(best['params']))}",
            highlight=False,
        )
    for name, entry in status["verdicts"].items():
        console.print(_verdict_line(name, entry), highlight=False)
    for run in status["unfinished"] + status["failed"]:
        reason = f": {run['reason']}" if run["reason"] else ""
        console.print(
            f"{run['kind']} {run['number']} {run['status']} at step {run['step']:,} of "
            f"{run['num_steps']:,}{escape(reason)}",
            highlight=False,
        )
    for run in status["finalists"] + status["promotions"]:
        if run["val_loss_nats"] is not None:
            console.print(
                f"{run['kind']} {run['number']} of trial {run['parent_number']} "
                f"(x{run['scale']:g}): val loss {run['val_loss_nats']:.4f}  "
                f"PPL {run['val_ppl']:,.1f}",
                highlight=False,
            )
    for reason, entry in status["rejections"].items():
        console.print(
            f"rejected {entry['count']} x {reason}: for example, {escape(entry['example'])}",
            highlight=False,
        )


def _verdict_line(name: str, entry: dict[str, Any]) -> str:
    from studies.diagnosis import LABELS

    numbers = [str(number) for number in entry["trials"][:SHOWN_TRIALS]]
    more = ", ..." if entry["count"] > SHOWN_TRIALS else ""
    word = "trial" if entry["count"] == 1 else "trials"
    return f"curves: {LABELS[name]}: {entry['count']} {word} ({', '.join(numbers)}{more})"


def export_command(storage: str, study_name: str | None, folder: Path, console: Console) -> None:
    """Write a study's space and configurations as files that run again."""
    from studies.export import export_study

    files = export_study(storage, study_name)
    for path, data in files.items():
        text = data if isinstance(data, str) else dump_yaml(data)
        write_text_atomically(folder / path, text)
    best = files.get("best.yaml")
    world = world_of(best) if isinstance(best, dict) else None
    print_notice(console, world)
    purpose = "lines of the table, not to be trained" if is_replayed(world) else "train"
    console.print(
        f"{folder}: space.yaml (search --space), best.yaml and runs/*.yaml ({purpose}), runs.csv",
        highlight=False,
    )
