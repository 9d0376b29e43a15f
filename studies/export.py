"""A study as files that run again: its space, its configurations, its runs as a table."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from studies.database.reader import Reader
from studies.database.run_kind import RunKind
from studies.database.tables import Run


def export_study(storage: str | Path, name: str | None) -> dict[str, dict[str, Any] | str]:
    """Files by relative path: mappings become YAML, text stays as it is.

    `space.yaml` is for `search --space`, `best.yaml` and `runs/*.yaml` are for `train`.

    Raises:
        StudyError: no such database or study.
    """
    with Reader.snapshot(storage) as reader:
        study = reader.study(name)
        runs = [run for kind in RunKind for run in reader.runs(study.id, kind=kind)]
        best = reader.best_run(study.id)
    files: dict[str, dict[str, Any] | str] = {
        "space.yaml": {
            "budget": float(study.budget_flops),
            "convention": study.convention,
            "method": study.sampler,
            "seed": study.seed,
            "parameters": study.space["parameters"],
        }
    }
    if best is not None:
        files["best.yaml"] = _runnable(best, "best")
    for run in runs:
        label = f"{run.kind}-{run.number:05d}"
        files[f"runs/{label}.yaml"] = _runnable(run, label)
    files["runs.csv"] = _table(runs)
    return files


def _runnable(run: Run, label: str) -> dict[str, Any]:
    """The configuration with a folder of its own, so that a rerun leaves the study's files be."""
    return {**run.config, "output_dir": f"outputs/{label}"}


def _table(runs: list[Run]) -> str:
    columns = [column.name for column in Run.__table__.columns if column.name != "config"]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for run in runs:
        writer.writerow([getattr(run, column) for column in columns])
    return text.getvalue()
