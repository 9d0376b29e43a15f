"""All learning curves of a study in one read."""

from __future__ import annotations

from collections import defaultdict

from sqlalchemy import select
from sqlalchemy.orm import Session

from studies.database.tables import Point, Run
from studies.diagnosis.curves import COLUMNS, Curve


def read_curves(session: Session, study_id: int) -> dict[int, Curve]:
    """Curves by run id; a run without points is missing."""
    rows = session.execute(
        select(Point.run_id, *(getattr(Point, name) for name in COLUMNS))
        .join(Run, Run.id == Point.run_id)
        .where(Run.study_id == study_id)
        .order_by(Point.run_id, Point.step)
    )
    by_run: dict[int, list[tuple[float | None, ...]]] = defaultdict(list)
    for run_id, *values in rows:
        by_run[run_id].append(tuple(values))
    return {run_id: Curve.of_rows(values) for run_id, values in by_run.items()}
