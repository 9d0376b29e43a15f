"""Curves from a run's folder, from a study, or from anybody's CSV or JSON-lines file."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from budgetsweep.config import did_you_mean, load_yaml
from budgetsweep.errors import DataError, StudyError
from studies.csv_files import csv_rows, number, read_text
from studies.database.reader import Reader
from studies.database.run_kind import RunKind
from studies.diagnosis.curves import COLUMNS, Curve
from studies.diagnosis.facts import CurveFacts
from studies.diagnosis.study_runs import facts_of_run
from trainer.events import RunStatus

ALIASES = {
    "step": ("step", "steps", "iter", "iteration", "global_step", "_step"),
    "tokens": ("tokens", "n_tokens"),
    "flops": ("flops",),
    "train_loss_nats": ("train_loss_nats", "train_loss", "train-loss", "train/loss", "loss"),
    "val_loss_nats": ("val_loss_nats", "val_loss", "val-loss", "val/loss", "eval_loss"),
    "lr": ("lr", "learning_rate", "train/learning_rate"),
    "grad_norm": ("grad_norm", "train/grad_norm"),
}
"""Names of columns that other trainers write too; the first found counts."""

EXPECTED = "expected columns step, train_loss and, where known, val_loss, lr, grad_norm, tokens"


@dataclass(frozen=True)
class CurveSource:
    """A curve and what is known beside it."""

    name: str
    """What was asked for, as messages name it."""
    curve: Curve
    facts: CurveFacts


def read_curve(path: Path) -> CurveSource:
    """The curve of a run's folder (curve.csv, config.yaml, eval.json) or of a single file.

    Raises:
        DataError: no such file, no curve in it, or a line (named by its number) that is none.
        ConfigError: the folder's config.yaml cannot be read.
    """
    if path.is_dir():
        return _read_folder(path)
    curve, failure = read_curve_file(path)
    return CurveSource(str(path), curve, CurveFacts(failure=failure))


def _read_folder(folder: Path) -> CurveSource:
    file = folder / "curve.csv"
    if not file.is_file():
        raise DataError(
            f"{folder}: no curve.csv; expected the folder of a complete run, or give a CSV or "
            ".jsonl file, or --trial N of a study"
        )
    curve, failure = read_curve_file(file)
    config = folder / "config.yaml"
    facts = CurveFacts(failure=failure)
    if config.is_file():
        facts = CurveFacts.of_config(
            load_yaml(config), bytes_per_token=_bytes_per_token(folder / "eval.json"),
            failure=failure,
        )  # fmt: skip
    return CurveSource(str(folder), curve, facts)


def _bytes_per_token(path: Path) -> float | None:
    """From loss and bits per byte of eval.json: bits per token / bits per byte."""
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        value = report["val-loss"] / math.log(2) / report["val_bits_per_byte"]
    except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError):
        return None  # a curve can be judged without
    return value if math.isfinite(value) and value > 0 else None


def read_run(
    storage: str | Path, study_name: str | None, kind: RunKind, number: int
) -> CurveSource:
    """The curve of a study's run.

    Raises:
        StudyError: no such database, study or run, or the run has no curve yet.
    """
    with Reader.snapshot(storage) as reader:
        study = reader.study(study_name)
        runs = reader.runs(study.id, kind=kind)
        run = next((run for run in runs if run.number == number), None)
        if run is None:
            numbers = [run.number for run in runs]
            known = f"it has {min(numbers)} to {max(numbers)}" if numbers else "it has none"
            raise StudyError(f"study {study.name}: no {kind} {number} ({known})")
        points = reader.points(run.id)
    name = f"{kind} {number} of study {study.name}"
    if not points and run.status != RunStatus.FAILED:
        raise StudyError(f"{name} has no curve yet (it is {run.status}): ask again later")
    return CurveSource(name, Curve.of(points), facts_of_run(run, study))


def read_curve_file(path: Path) -> tuple[Curve, str | None]:
    """The points of a CSV or JSON-lines file, by step.

    Lines of the same step are one point, so that validation losses may stand on lines of their
    own. Other columns are passed over; an empty cell or a missing key was not measured.

    Returns:
        The curve up to the first loss that is NaN or infinite, and where that was, or None.

    Raises:
        DataError: the file is missing, not UTF-8, has no step or no loss, or a line (named by its
            number) has something else than a number, or goes back in its steps.
    """
    rows: dict[int, dict[str, float]] = {}
    last = -1
    for line, record in _records(path):
        where = f"{path}, line {line}"
        row = {
            name: found
            for name, key, value in _known(record)
            if (found := number(value, key, where)) is not None
        }
        if "step" not in row:
            raise DataError(f"{where}: no step; {EXPECTED}")
        step = row["step"]
        if not (0 <= step < 1e15 and step == int(step)):
            raise DataError(f"{where}: step = {step:g}; expected a whole number of steps")
        if step < last:
            raise DataError(
                f"{where}: steps go back from {last} to {step:g}; give one run's curve by step"
            )
        last = int(step)
        rows.setdefault(last, {}).update(row)
    if not any("train_loss_nats" in row or "val_loss_nats" in row for row in rows.values()):
        raise DataError(f"{path}: no losses; {EXPECTED}")
    failure = None
    table: list[tuple[float | None, ...]] = []
    for step, row in rows.items():
        losses = [row[name] for name in ("train_loss_nats", "val_loss_nats") if name in row]
        bad = next((loss for loss in losses if not math.isfinite(loss)), None)
        if bad is not None:
            failure = f"the loss became {bad} at step {step}"
            break
        table.append(tuple(row.get(name) for name in COLUMNS))
    return Curve.of_rows(table), failure


def _records(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Lines by number, as mappings."""
    wanted = "a run's folder, a CSV or a .jsonl file"
    text = read_text(path, wanted=wanted, expected=EXPECTED)
    if text.lstrip().startswith("{"):
        return _json_lines(path, text)
    head, rows = csv_rows(path, text)
    if not any(alias in head for alias in ALIASES["step"]):
        near = did_you_mean("step", head) if head else ""
        raise DataError(f"{path}: no column step{near}; {EXPECTED}")
    return rows


def _json_lines(path: Path, text: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    example = '{"step": 10, "train_loss": 5.2}'
    for line, content in enumerate(text.split("\n"), start=1):
        if not content.strip():
            continue
        try:
            record = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}, line {line}: not JSON; expected {example}") from error
        if not isinstance(record, dict):
            raise DataError(f"{path}, line {line}: expected {example}")
        yield line, record


def _known(record: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """Our name, the file's name and the value of each column that is known."""
    for name, aliases in ALIASES.items():
        for alias in aliases:
            if alias in record:
                yield name, alias, record[alias]
                break
