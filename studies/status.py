"""Where a study stands, as plain data for `budgetsweep status`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from studies.database.reader import Reader
from studies.database.run_kind import RunKind
from studies.database.tables import Run
from studies.diagnosis.curves import COLUMNS, Curve
from studies.diagnosis.study_runs import diagnose_runs
from studies.diagnosis.verdicts import HEALTHY, NAMES, Diagnosis
from trainer.events import RunStatus

STUDY_FACTS = ("budget_flops", "convention", "sampler", "seed", "val_tokens", "val_checksum")
RUN_FACTS = (
    "kind", "number", "status", "reason", "scale", "params", "n_params", "step", "num_steps",
    "val_loss_nats", "val_ppl", "val_bits_per_byte", "output_dir",
)  # fmt: skip


def study_status(storage: str | Path, name: str | None) -> dict[str, Any]:
    """Everything `budgetsweep status --json` prints; whole numbers are exact.

    Raises:
        StudyError: no such database or study.
    """
    with Reader.snapshot(storage) as reader:
        study = reader.study(name)
        runs = {kind: reader.runs(study.id, kind=kind) for kind in RunKind}
        trials = runs[RunKind.TRIAL]
        everything = [run for kind in RunKind for run in runs[kind]]
        ledger = reader.ledger(study.id)
        best = reader.best_run(study.id)
        rejections: dict[str, dict[str, Any]] = {}
        for rejection in reader.rejections(study.id):
            entry = rejections.setdefault(rejection.reason, {"count": 0})
            entry["count"] += 1
            entry["example"] = rejection.detail
        judged = diagnose_runs(
            everything, study, Curve.each_of(reader.curve_rows(study.id, COLUMNS))
        )
        numbers = {run.id: run.number for run in trials}
        return {
            "study": study.name,
            **{name: getattr(study, name) for name in STUDY_FACTS},
            "data": study.data_description,
            "backend": study.settings.backend,
            "trials": dict(Counter(run.status for run in trials)),
            "flops_planned": getattr(ledger.planned, study.convention),
            "flops_spent": getattr(ledger.spent, study.convention),
            "flops_recomputed": getattr(ledger.recomputed, study.convention),
            "best": None if best is None else {**_facts(best), "verdicts": _names(judged, best)},
            "verdicts": _verdicts(judged, trials),
            "unfinished": [_facts(run) for run in everything if not run.status.is_finished],
            "failed": [_facts(run) for run in everything if run.status == RunStatus.FAILED],
            **{
                f"{kind}s": [
                    {
                        **_facts(run),
                        "parent_number": numbers.get(run.parent_run_id or -1),
                        "verdicts": _names(judged, run),
                    }
                    for run in runs[kind]
                ]
                for kind in (RunKind.FINALIST, RunKind.PROMOTION)
            },
            "rejections": rejections,
        }


def _verdicts(judged: dict[int, Diagnosis], trials: list[Run]) -> dict[str, dict[str, Any]]:
    """Problems detected in the curves of trials, with the trials' numbers."""
    found: dict[str, list[int]] = {}
    for run in trials:
        for name in _names(judged, run):
            found.setdefault(name, []).append(run.number)
    return {
        name: {"count": len(found[name]), "trials": found[name]}
        for name in NAMES
        if name in found and name != HEALTHY
    }


def _names(judged: dict[int, Diagnosis], run: Run) -> list[str]:
    return [verdict.name for verdict in judged[run.id].verdicts] if run.id in judged else []


def _facts(run: Run) -> dict[str, Any]:
    return {"tokens": run.planned_tokens, **{name: getattr(run, name) for name in RUN_FACTS}}
