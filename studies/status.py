"""Where a study stands, as plain data for `budgetsweep status`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from studies.store import Store
from studies.tables import Run


def study_status(storage: str | Path, name: str | None) -> dict[str, Any]:
    """Everything `budgetsweep status --json` prints; whole numbers are exact.

    Raises:
        StudyError: no such database or study.
    """
    with Store.open(storage) as store:
        study = store.study(name)
        trials = store.runs(study.id, kind="trial")
        promotions = store.runs(study.id, kind="promotion")
        ledger = store.ledger(study.id)
        best = store.best_run(study.id)
        rejections: dict[str, dict[str, Any]] = {}
        for rejection in store.rejections(study.id):
            entry = rejections.setdefault(rejection.reason, {"count": 0})
            entry["count"] += 1
            entry["example"] = rejection.detail
        numbers = {run.id: run.number for run in trials}
        unfinished = ("queued", "running", "interrupted")
        return {
            "study": study.name,
            "budget_flops": study.budget_flops,
            "convention": study.convention,
            "sampler": study.sampler,
            "seed": study.seed,
            "data": study.data_description,
            "val_tokens": study.val_tokens,
            "val_checksum": study.val_checksum,
            "trials": dict(Counter(run.status for run in trials)),
            "flops_planned": getattr(ledger.planned, study.convention),
            "flops_spent": getattr(ledger.spent, study.convention),
            "flops_redone": getattr(ledger.redone, study.convention),
            "best": None if best is None else _facts(best),
            "unfinished": [
                _facts(run) for run in (*trials, *promotions) if run.status in unfinished
            ],
            "failed": [_facts(run) for run in (*trials, *promotions) if run.status == "failed"],
            "promotions": [
                {**_facts(run), "parent_number": numbers.get(run.parent_run_id or -1)}
                for run in promotions
            ],
            "rejections": rejections,
        }


def _facts(run: Run) -> dict[str, Any]:
    return {
        "kind": run.kind,
        "number": run.number,
        "status": run.status,
        "reason": run.reason,
        "scale": run.scale,
        "params": run.params,
        "n_params": run.n_params,
        "tokens": run.planned_tokens,
        "step": run.step,
        "num_steps": run.num_steps,
        "val_loss_nats": run.val_loss_nats,
        "val_ppl": run.val_ppl,
        "val_bits_per_byte": run.val_bits_per_byte,
        "output_dir": run.output_dir,
    }
