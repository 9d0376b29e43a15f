"""All learning curves of a study in one read."""

from __future__ import annotations

from studies.database.reader import Reader
from studies.diagnosis.curves import COLUMNS, Curve


def study_curves(reader: Reader, study_id: int) -> dict[int, Curve]:
    """Curves by run id; a run without points is missing."""
    rows = reader.curve_rows(study_id, COLUMNS)
    return {run_id: Curve.of_rows(values) for run_id, values in rows.items()}
