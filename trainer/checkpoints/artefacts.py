"""What a finished run leaves in its folder: model.pt, config.yaml, curve.csv, eval.json.

eval.json is written last, and each file whole or not at all: where it exists, the run is complete.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from budgetsweep.config import dump_yaml
from budgetsweep.errors import CheckpointError
from budgetsweep.files import atomic_file, write_text_atomically
from trainer.checkpoints.checkpoint import cannot_write, run_hash, write_tensors
from trainer.config import RunConfig
from trainer.events import Point, RunResult, RunStatus

FILES = {"model": "model.pt", "config": "config.yaml", "curve": "curve.csv", "eval": "eval.json"}
logger = logging.getLogger("budgetsweep")
_FACTS = tuple(f.name for f in dataclasses.fields(RunResult) if f.name != "artefacts")


def write_untrained(
    run_dir: Path, config: RunConfig, points: Iterable[Point], result: RunResult, checksum: str
) -> RunResult:
    """Write the files of a complete run that nobody trained.

    `checksum` is that of the world or table that stands for both texts.

    Raises:
        CheckpointError: the folder or a file cannot be written.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(run_dir, error) from error
    facts = {"data_checksum": checksum, "val_checksum": checksum}
    return write_artefacts(run_dir, config, None, points, result, facts)


def write_artefacts(
    run_dir: Path,
    config: RunConfig,
    weights: dict[str, Any] | None,
    points: Iterable[Point],
    result: RunResult,
    facts: dict[str, Any],
) -> RunResult:
    """Write the files of a complete run, with `facts` in eval.json.

    `weights` is the model's state dict; None: a simulated run has none, and no model.pt.

    Raises:
        CheckpointError: a file cannot be written.
    """
    written = {kind: name for kind, name in FILES.items() if kind != "model" or weights is not None}
    result = dataclasses.replace(
        result, artefacts={kind: str(run_dir / name) for kind, name in written.items()}
    )
    report = {
        "val-loss": result.val_loss_nats,  # the two keys of the course's evaluate()
        "val-perplexity": result.val_ppl,
        "config_hash": run_hash(config),
        **facts,
        **{name: getattr(result, name) for name in _FACTS},
    }
    try:
        if weights is not None:
            write_model(run_dir / FILES["model"], weights)
        write_text_atomically(run_dir / FILES["config"], dump_yaml(config.to_dict()))
        write_text_atomically(run_dir / FILES["curve"], curve_csv(points))
        write_text_atomically(run_dir / FILES["eval"], json.dumps(report, indent=1) + "\n")
    except OSError as error:
        raise cannot_write(Path(error.filename or run_dir), error) from error
    return result


class FinishedRun(NamedTuple):
    """What the folder of a complete run says."""

    result: RunResult
    points: list[Point]
    """Of the curves; none where curve.csv is missing or damaged."""


def read_finished(run_dir: Path, config: RunConfig) -> FinishedRun | None:
    """Result and curves of a run that is complete; None where it is not.

    Raises:
        CheckpointError: the folder holds another run's result, or one that cannot be read.
    """
    path = run_dir / FILES["eval"]
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        status = RunStatus(report["status"])
        result = RunResult(**{**{name: report[name] for name in _FACTS}, "status": status})
        owner = report["config_hash"]
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path} is damaged or not of budgetsweep: move it away to train here again, or give "
            "another output_dir"
        ) from error
    if owner != run_hash(config):
        raise CheckpointError(
            f"{run_dir} holds the finished run of another configuration: give another output_dir"
        )
    files = {kind: run_dir / name for kind, name in FILES.items()}
    present = {kind: str(file) for kind, file in files.items() if file.exists()}
    points = _read_points(run_dir / FILES["curve"])
    return FinishedRun(dataclasses.replace(result, artefacts=present), points)


def curve_csv(points: Iterable[Point]) -> str:
    """The points of the curves as CSV; an empty cell is a value that was not measured."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([field.name for field in dataclasses.fields(Point)])
    writer.writerows(dataclasses.astuple(point) for point in points)
    return text.getvalue()


def _read_points(path: Path) -> list[Point]:
    """The inverse of `curve_csv`."""
    whole = {"step", "tokens", "flops"}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return [
                Point(**{
                    name: int(text) if name in whole else float(text) if text else None
                    for name, text in row.items()
                })  # type: ignore[arg-type]
                for row in csv.DictReader(file)
            ]  # fmt: skip
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError, csv.Error) as error:
        logger.warning("%s cannot be read (%s): the run has no curves", path, error)
        return []


def write_model(path: Path, weights: dict[str, Any]) -> None:
    """Write a state dict as model.pt, whole or not at all."""
    with atomic_file(path, path.with_name(f".{path.name}.tmp")) as file:
        write_tensors(weights, file)
