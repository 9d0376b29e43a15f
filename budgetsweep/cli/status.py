"""Where a study stands and what is wrong with a run: `budgetsweep status`, `diagnose`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from budgetsweep.cli.options import FILE, json_option, storage_options
from budgetsweep.errors import ConfigError
from budgetsweep.formats import flops, plural

if TYPE_CHECKING:
    from rich.console import Console

    from studies.diagnosis.curve_files import CurveSource
    from studies.diagnosis.verdicts import Diagnosis

SHOWN_TRIALS = 10


@click.command("status")
@json_option
@storage_options
def status_command(as_json: bool, storage: str, study: str | None) -> None:
    """Show trials, the best so far, FLOPs spent, and why proposals were rejected."""
    from budgetsweep.cli.display import new_console
    from studies.status import study_status

    console, status = new_console(), study_status(storage, study)
    if as_json:
        console.print_json(data=status)
    else:
        _print_status(status, console)


def _print_status(status: dict[str, Any], console: Console) -> None:
    from budgetsweep.cli.display import settings_text

    console.print(
        f"study {status['study']}: budget {flops(status['budget_flops'])} FLOPs per trial "
        f"({status['convention']}), sampler {status['sampler']}, seed {status['seed']}"
    )
    console.print(f"data: {status['data'] or 'not prepared yet'}")
    counts = ", ".join(f"{n} {name}" for name, n in status["trials"].items()) or "none yet"
    console.print(f"trials: {counts}")
    spent, planned = status["flops_spent"], status["flops_planned"]
    console.print(
        f"FLOPs: {flops(spent)} spent of {flops(planned)} planned, "
        f"{flops(status['flops_recomputed'])} of them recomputed after interruptions"
    )
    best = status["best"]
    if best is not None:
        console.print(
            f"best: trial {best['number']}  val loss {best['val_loss_nats']:.4f}  "
            f"PPL {best['val_ppl']:,.1f}  {settings_text(best['params'])}"
        )
    for name, entry in status["verdicts"].items():
        console.print(_verdict_line(name, entry))
    for run in status["unfinished"] + status["failed"]:
        reason = f": {run['reason']}" if run["reason"] else ""
        console.print(
            f"{run['kind']} {run['number']} {run['status']} at step {run['step']:,} of "
            f"{run['num_steps']:,}{reason}"
        )
    for run in status["promotions"]:
        if run["val_loss_nats"] is not None:
            console.print(
                f"promotion {run['number']} of trial {run['parent_number']} (x{run['scale']:g}): "
                f"val loss {run['val_loss_nats']:.4f}  PPL {run['val_ppl']:,.1f}"
            )
    for reason, entry in status["rejections"].items():
        console.print(f"rejected {entry['count']} x {reason}: e.g. {entry['example']}")


def _verdict_line(name: str, entry: dict[str, Any]) -> str:
    from studies.diagnosis.verdicts import LABELS

    numbers = [str(number) for number in entry["trials"][:SHOWN_TRIALS]]
    more = ", ..." if entry["count"] > SHOWN_TRIALS else ""
    trials = plural(entry["count"], "trial")
    return f"detected problem: {LABELS[name]}: {trials} ({', '.join(numbers)}{more})"


@click.command("diagnose")
@click.argument("run", required=False, type=FILE)
@click.option("--trial", type=click.IntRange(0), help="A trial of a study, instead of RUN.")
@click.option("--finalist", type=click.IntRange(0), help="A finalist of a study.")
@click.option("--promotion", type=click.IntRange(0), help="A promotion of a study.")
@json_option
@storage_options
def diagnose_command(
    run: Path | None, trial: int | None, finalist: int | None, promotion: int | None,
    as_json: bool, storage: str, study: str | None,
) -> None:  # fmt: skip
    """Detect from its learning curve what is wrong with a run, and how many steps suffice.

    RUN is a run's folder, or anybody's CSV or .jsonl file with step, train_loss and, where known,
    val_loss, lr, grad_norm, tokens.
    """
    from budgetsweep.cli.display import new_console
    from studies.database.connection import storage_url
    from studies.database.run_kind import RunKind
    from studies.diagnosis.curve_files import read_curve, read_run
    from studies.diagnosis.diagnose import diagnose

    numbers = dict(zip(RunKind, (trial, finalist, promotion), strict=True))
    named = [(kind, number) for kind, number in numbers.items() if number is not None]
    if len(named) + (run is not None) != 1:
        raise ConfigError(
            "diagnose: give one of RUN (a run's folder, a CSV or a .jsonl file), --trial N, "
            "--finalist N and --promotion N"
        )
    if run is not None:
        source = read_curve(run)
    else:
        source = read_run(storage_url(storage), study, *named[0])
    found, console = diagnose(source.curve, source.facts), new_console()
    if as_json:
        console.print_json(data=_as_data(source, found))
    else:
        _print_diagnosis(source, found, console)


def _as_data(source: CurveSource, found: Diagnosis) -> dict[str, Any]:
    from dataclasses import asdict

    return {
        "run": source.name,
        "points": found.n_points,
        "verdicts": [{**asdict(v), "label": v.label, "cure": v.cure} for v in found.verdicts],
        "steps": None if found.steps is None else asdict(found.steps),
        "unseen": list(found.unseen),
    }


def _print_diagnosis(source: CurveSource, found: Diagnosis, console: Console) -> None:
    from budgetsweep.cli.display import visible
    from studies.diagnosis.steps import steps_sentences

    console.print(f"{visible(source.name, console)}: {found.n_points} points")
    for verdict in found.verdicts:
        console.print(f"{verdict.name}: {verdict.evidence}")
        if not found.is_healthy:
            console.print(f"  do: {verdict.cure}")
    for sentence in steps_sentences(found.steps):
        console.print(sentence)
    for missing in found.unseen:
        console.print(f"not looked for: {missing}")
