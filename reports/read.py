"""One study, read from its database into plain records. Nothing here writes.

All tables are read in one transaction, so that a report made while a search runs shows one
consistent moment of it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from studies.database.ledger import Spending
from studies.database.reader import Reader
from studies.database.run_kind import RunKind
from studies.database.tables import Fit, Prediction, Rejection, Run, Study
from studies.diagnosis.curves import COLUMNS, Curve


@dataclass(frozen=True)
class StudyData:
    """Everything that the database knows about one study."""

    study: Study
    runs: list[Run]
    """By kind and number."""
    rejections: list[Rejection]
    spending: dict[int, Spending]
    """By run id; a run without ledger entries is missing."""
    curves: dict[int, Curve]
    """By run id; a run without points is missing."""
    other_studies: list[str]
    """Names of the other studies in the same database."""
    fit: Fit | None = None
    """The law that was fitted last."""
    predictions: list[Prediction] = field(default_factory=list)
    """What was predicted of promotions before they trained, oldest first."""


def read_study(storage: str | Path, study_name: str | None = None) -> StudyData:
    """Read a study of a database (SQLAlchemy URL or SQLite file); None: the newest.

    Raises:
        StudyError: no such database or study, or not a database of ours.
    """
    with Reader.snapshot(storage) as reader:
        study = reader.study(study_name)
        return StudyData(
            study=study,
            runs=[run for kind in RunKind for run in reader.runs(study.id, kind=kind)],
            rejections=reader.rejections(study.id),
            spending=reader.spending(study.id),
            curves=Curve.each_of(reader.curve_rows(study.id, COLUMNS)),
            other_studies=[name for name in reader.study_names() if name != study.name],
            fit=reader.newest_fit(study.id),
            predictions=reader.predictions(study.id),
        )
