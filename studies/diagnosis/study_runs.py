"""Verdicts on the runs of a study."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from studies.database.tables import Run, Study
from studies.diagnosis.curves import Curve
from studies.diagnosis.diagnose import diagnose
from studies.diagnosis.facts import CurveFacts
from studies.diagnosis.verdicts import Diagnosis
from studies.simulation.worlds import is_replayed
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
    a replayed one, which has no curve.
    """
    found = {}
    for run in runs:
        facts = facts_of_run(run, study)
        if is_replayed(facts.world):
            continue
        if run.status not in JUDGED or (run.status == RunStatus.FAILED and not facts.diverged):
            continue
        found[run.id] = diagnose(curves.get(run.id, Curve.of_rows([])), facts)
    return found
