"""What `budgetsweep diagnose` does: find the curve, judge it, print. No torch."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from budgetsweep.errors import ConfigError
from studies.database.connection import storage_url
from studies.database.run_kind import RunKind
from studies.diagnosis import Diagnosis, diagnose
from studies.diagnosis.curve_files import CurveSource, read_curve, read_run
from studies.diagnosis.words import steps_sentences
from studies.simulation.worlds import notice


def diagnose_command(
    console: Console,
    *,
    run: Path | None,
    trial: int | None,
    finalist: int | None,
    promotion: int | None,
    storage: str,
    study: str | None,
    as_json: bool,
) -> None:
    """Judge one curve and print the verdicts.

    Raises:
        ConfigError: not exactly one run was named.
        DataError, StudyError: there is no such curve.
    """
    numbers = {
        RunKind.TRIAL: trial, RunKind.FINALIST: finalist, RunKind.PROMOTION: promotion,
    }  # fmt: skip
    stored = [(kind, number) for kind, number in numbers.items() if number is not None]
    if len(stored) + (run is not None) != 1:
        raise ConfigError(
            "diagnose: give one of RUN (a run's folder, a CSV or a .jsonl file), --trial N, "
            "--finalist N and --promotion N"
        )
    if run is not None:
        source = read_curve(run)
    else:
        ((kind, number),) = stored
        source = read_run(storage_url(storage), study, kind, number)
    found = diagnose(source.curve, source.facts)
    if as_json:
        console.print_json(json.dumps(as_data(source, found)))
    else:
        print_diagnosis(source, found, console)


def as_data(source: CurveSource, found: Diagnosis) -> dict[str, Any]:
    """Plain data of a diagnosis, as `--json` prints it."""
    steps = None
    if found.steps is not None:
        steps = dataclasses.asdict(found.steps)
        if found.steps.extrapolation is not None:
            steps["extrapolation"]["is_carried"] = found.steps.extrapolation.is_carried
    return {
        "run": source.name,
        "simulated": source.facts.world,
        "points": found.n_points,
        "verdicts": [
            {"name": v.name, "label": v.label, "evidence": v.evidence, "cure": v.cure}
            for v in found.verdicts
        ],
        "steps": steps,
        "unseen": list(found.unseen),
    }


def print_diagnosis(source: CurveSource, found: Diagnosis, console: Console) -> None:
    """A panel a verdict on a terminal, plain lines elsewhere."""

    def line(text: str) -> None:
        console.print(Text(text), highlight=False)

    name = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in source.name)
    line(f"{name}: {found.n_points} points")
    if source.facts.world is not None:
        line(notice(source.facts.world))
    for verdict in found.verdicts:
        sound = found.is_healthy
        if console.is_terminal:
            body = Text(verdict.evidence)
            if not sound:
                body.append(f"\n→ {verdict.cure}", style="bold")
            console.print(
                Panel(
                    body, title=Text(verdict.label), title_align="left", box=box.ROUNDED,
                    border_style="green" if sound else "yellow",
                )
            )  # fmt: skip
        else:
            line(f"{verdict.name}: {verdict.evidence}")
            if not sound:
                line(f"  do: {verdict.cure}")
    for sentence in steps_sentences(found.steps):
        line(sentence)
    for missing in found.unseen:
        line(f"not looked for: {missing}")
