"""Diagnoses of the runs of a study."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from studies.database.tables import Run, Study
from studies.diagnosis.curves import Curve
from studies.diagnosis.diagnose import diagnose
from studies.diagnosis.facts import CurveFacts
from studies.diagnosis.verdicts import Diagnosis
from trainer.events import RunStatus

JUDGED = (RunStatus.COMPLETE, RunStatus.FAILED)
"""Statuses of runs that are judged; the curve of another is not all there."""


def facts_of_run(run: Run, study: Study) -> CurveFacts:
    """What the database knows of a run beside its curve."""
    return CurveFacts.of_config(
        run.config,
        bytes_per_token=study.bytes_per_token,
        failure=run.reason if run.status == RunStatus.FAILED else None,
    )


def diagnose_runs(
    runs: Iterable[Run], study: Study, curves: Mapping[int, Curve]
) -> dict[int, Diagnosis]:
    """Diagnoses by run id, of the runs that ended by themselves.

    A run that failed for another reason than its loss is left out: its curve is not to blame. So is
    a complete one without training losses.
    """
    found: dict[int, Diagnosis] = {}
    for run in runs:
        if run.status not in JUDGED:
            continue
        facts = facts_of_run(run, study)
        curve = curves.get(run.id, Curve.of_rows([]))
        if run.status == RunStatus.FAILED:
            is_judged = facts.diverged
        else:
            is_judged = bool(np.isfinite(curve.train_loss_nats).any())
        if is_judged:
            found[run.id] = diagnose(curve, facts)
    return found
