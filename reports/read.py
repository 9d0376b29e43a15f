"""One study, read from its database into plain records. Nothing here writes.

All tables are read in one transaction, so that a report made while a search runs shows one
consistent moment of it.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, make_url, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

from budgetsweep.config import did_you_mean
from budgetsweep.errors import StudyError
from studies.database import connection as storage
from studies.database.ledger import Amount
from studies.database.reader import curve_rows
from studies.database.tables import Fit, LedgerEntry, Prediction, Rejection, Run, Study
from studies.diagnosis.curves import COLUMNS, Curve


@dataclass(frozen=True)
class Spending:
    """Sums of one run's ledger; exact whole numbers."""

    planned: Amount
    spent: Amount


@dataclass(frozen=True)
class StudyData:
    """Everything that the database knows about one study."""

    study: Study
    runs: list[Run]
    """Trials and promotions, in the order of their rows."""
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


def read_study(storage_url: str, study_name: str | None = None) -> StudyData:
    """Read a study.

    Args:
        storage_url: SQLAlchemy URL of the database, or the name of a SQLite file.
        study_name: which study; None: the one that was begun last.

    Raises:
        StudyError: no such database or study, or not a database of ours.
    """
    url = storage.storage_url(storage_url)
    where = storage.describe(url)
    engine = _engine(url)
    try:
        with storage.clear_errors(where), _snapshot(engine) as session:
            names = list(session.scalars(select(Study.name).order_by(Study.id)))
            name = _choose(names, study_name, where)
            study = session.scalars(select(Study).where(Study.name == name)).one()
            data = StudyData(
                study=study,
                runs=list(
                    session.scalars(select(Run).where(Run.study_id == study.id).order_by(Run.id))
                ),
                rejections=list(
                    session.scalars(
                        select(Rejection)
                        .where(Rejection.study_id == study.id)
                        .order_by(Rejection.number)
                    )
                ),
                spending=_read_ledger(session, study.id),
                curves=Curve.each_of(curve_rows(session, study.id, COLUMNS)),
                other_studies=[other for other in names if other != name],
                **_read_predictions(session, study.id),
            )
            session.expunge_all()
            return data
    except DBAPIError as error:
        cause = " ".join(str(error.orig).split())
        raise StudyError(
            f"{where}: cannot be read as a study database of this version ({cause}); "
            "continue the search once with this version, or give another --storage"
        ) from error
    finally:
        engine.dispose()


def _engine(url: str) -> Engine:
    """An engine that cannot write; a missing SQLite file is an error, not a new empty file."""
    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite":
        return storage.open_engine(url, create=False)
    path = Path(storage.describe(url).removeprefix("file:").partition("?")[0]).absolute()
    if not path.is_file():
        raise StudyError(f"{path}: no such study database; run `budgetsweep search` first")
    mode = "mode=ro"
    if not os.access(path.parent, os.W_OK) and not Path(f"{path}-wal").exists():
        # SQLite would make a file beside a database in WAL mode; on a read-only disk it cannot,
        # and nobody else can write there either.
        mode = "immutable=1"
    address = f"{path.as_uri()}?{mode}"

    def connect() -> sqlite3.Connection:
        return sqlite3.connect(address, uri=True, timeout=storage.BUSY_SECONDS)

    return create_engine("sqlite://", creator=connect, poolclass=NullPool)


@contextlib.contextmanager
def _snapshot(engine: Engine) -> Iterator[Session]:
    """A session that sees one moment of the database in all its reads, and cannot write."""
    with engine.connect() as connection:
        _begin(connection)
        with Session(bind=connection, autoflush=False) as session:
            yield session
        connection.rollback()


def _begin(connection: Connection) -> None:
    if connection.dialect.name == "sqlite":
        # Python's driver begins no transaction for reads; each would see its own moment.
        connection.exec_driver_sql("BEGIN")
    elif connection.dialect.name == "postgresql":
        connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")


def _choose(names: list[str], wanted: str | None, shown: str) -> str:
    if not names:
        raise StudyError(f"{shown}: holds no study yet; run `budgetsweep search` first")
    if wanted is None:
        return names[-1]
    if wanted not in names:
        raise StudyError(f"{shown}: no study {wanted!r}{did_you_mean(wanted, names)}")
    return wanted


def _read_predictions(session: Session, study_id: int) -> dict[str, Any]:
    """Newest fit and all predictions."""
    newest = select(Fit).where(Fit.study_id == study_id).order_by(Fit.id.desc()).limit(1)
    told = select(Prediction).where(Prediction.study_id == study_id).order_by(Prediction.id)
    return {"fit": session.scalar(newest), "predictions": list(session.scalars(told))}


def _read_ledger(session: Session, study_id: int) -> dict[int, Spending]:
    """Sums by run, in Python: exact at any size, which a database's SUM is not."""
    rows = session.execute(
        select(
            LedgerEntry.run_id,
            LedgerEntry.entry,
            LedgerEntry.steps,
            LedgerEntry.tokens,
            LedgerEntry.flops_nanogpt,
            LedgerEntry.flops_matmul,
            LedgerEntry.flops_mac,
        ).where(LedgerEntry.study_id == study_id)
    )
    sums: dict[str, dict[int, Amount]] = {
        "planned": defaultdict(Amount),
        "spent": defaultdict(Amount),
    }
    for run_id, entry, *figures in rows:
        sums[entry][run_id] += Amount(*figures)
    planned, spent = sums["planned"], sums["spent"]
    return {run_id: Spending(planned[run_id], spent[run_id]) for run_id in {*planned, *spent}}
