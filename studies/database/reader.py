"""Questions to a study database. Objects come detached: plain data, no open transaction."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from sqlalchemy import Engine, Select, or_, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from budgetsweep.config import did_you_mean
from budgetsweep.errors import BudgetsweepError, StudyError
from model.flops import Convention
from studies.database import connection, ledger
from studies.database.ledger import Spending
from studies.database.run_kind import RunKind
from studies.database.tables import Fit, PointRow, Prediction, Rejection, Run, Study
from trainer.events import RunStatus


class IllegalChangeError(BudgetsweepError):
    """A change that no study or run can make. A defect of the caller; nothing was written."""


class Reader:
    """Reads studies. Safe to use from several threads, unless it is a snapshot."""

    def __init__(
        self, engine: Engine, where: str | None = None, session: Session | None = None
    ) -> None:
        self.engine = engine
        self._where = where or connection.describe(engine.url)
        self._session = session
        """That all queries share; None: each has its own."""

    @classmethod
    @contextmanager
    def snapshot(cls, storage: str | Path) -> Iterator[Self]:
        """A reader whose queries all see one moment of a database, and which cannot write.

        Raises:
            StudyError: no such database, or not a database of ours.
        """
        url = connection.storage_url(storage)
        where = connection.describe(url)
        engine = connection.open_for_reading(url)
        try:
            with connection.clear_errors(where), engine.connect() as opened:
                connection.begin_snapshot(opened)
                with Session(bind=opened, autoflush=False) as session:
                    yield cls(engine, where, session)
                opened.rollback()
        except DBAPIError as error:
            cause = " ".join(str(error.orig).split())
            raise StudyError(
                f"{where}: cannot be read as a study database of this version ({cause}); "
                "continue the search once with this version, or give another --storage"
            ) from error
        finally:
            engine.dispose()

    @contextmanager
    def _read(self) -> Iterator[Session]:
        if self._session is not None:
            yield self._session
            return
        with (
            connection.clear_errors(self._where),
            Session(self.engine, expire_on_commit=False) as session,
        ):
            yield session

    def _all(self, query: Select[Any]) -> list[Any]:
        with self._read() as session:
            return list(session.scalars(query))

    def find_study(self, name: str) -> Study | None:
        """The study of that name, or None."""
        with self._read() as session:
            return session.scalar(select(Study).where(Study.name == name))

    def study(self, name: str | None = None) -> Study:
        """The study of that name; without a name the only one, or the newest.

        Raises:
            StudyError: there is none; names those there are.
        """
        if name is None:
            with self._read() as session:
                found = session.scalar(select(Study).order_by(Study.id.desc()).limit(1))
        else:
            found = self.find_study(name)
        if found is not None:
            return found
        names = self.study_names()
        if name is None or not names:
            raise StudyError(f"{self._where} holds no study yet; run `budgetsweep search` first")
        raise StudyError(f"{self._where} holds no study {name!r}{did_you_mean(name, names)}")

    def study_names(self) -> list[str]:
        """Names of all studies, oldest first."""
        return self._all(select(Study.name).order_by(Study.id))

    def run(self, run_id: int) -> Run:
        """One run.

        Raises:
            IllegalChangeError: there is none of that id.
        """
        with self._read() as session:
            found = session.get(Run, run_id)
        if found is None:
            raise IllegalChangeError(f"there is no run {run_id}")
        return found

    def runs(
        self,
        study_id: int,
        *,
        kind: RunKind | None = None,
        statuses: Collection[RunStatus] | None = None,
    ) -> list[Run]:
        """Runs of a study by number."""
        query = select(Run).where(Run.study_id == study_id)
        if kind is not None:
            query = query.where(Run.kind == kind)
        if statuses is not None:
            query = query.where(Run.status.in_(statuses))
        return self._all(query.order_by(Run.number, Run.id))

    def points(self, run_id: int) -> list[PointRow]:
        """The learning curves of a run, by step."""
        query = select(PointRow).where(PointRow.run_id == run_id).order_by(PointRow.step)
        return self._all(query)

    def curve_rows(self, study_id: int, columns: Sequence[str]) -> dict[int, list[tuple[Any, ...]]]:
        """Columns of the learning curves of all runs, by run id; one without points is missing."""
        query = (
            select(PointRow.run_id, *(getattr(PointRow, name) for name in columns))
            .join(Run, Run.id == PointRow.run_id)
            .where(Run.study_id == study_id)
            .order_by(PointRow.run_id, PointRow.step)
        )
        rows: dict[int, list[tuple[Any, ...]]] = defaultdict(list)
        with self._read() as session:
            for run_id, *values in session.execute(query):
                rows[run_id].append(tuple(values))
        return dict(rows)

    def config_hashes(self, study_id: int) -> set[str]:
        """`config_hash` of every run of a study."""
        return set(self._all(select(Run.config_hash).where(Run.study_id == study_id)))

    def best_run(self, study_id: int) -> Run | None:
        """The complete trial of lowest validation loss (the earlier of two equals), or None.

        Trials of another rung than the whole budget do not compete.
        """
        query = (
            select(Run)
            .where(
                Run.study_id == study_id,
                Run.kind == RunKind.TRIAL,
                Run.status == RunStatus.COMPLETE,
                Run.val_loss_nats.is_not(None),
                or_(Run.scale.is_(None), Run.scale == 1.0),
            )
            .order_by(Run.val_loss_nats, Run.number)
            .limit(1)
        )
        with self._read() as session:
            return session.scalar(query)

    def committed_flops(
        self, study_id: int, convention: Convention, *, kind: RunKind | None = None
    ) -> int:
        """Training FLOPs that runs have spent, and that the unfinished ones may still take."""
        planned = getattr(Run, f"planned_flops_{convention}")
        query = select(
            Run.status, Run.step, Run.steps_executed, Run.num_steps, planned.label("planned")
        ).where(Run.study_id == study_id)
        if kind is not None:
            query = query.where(Run.kind == kind)
        total = 0
        with self._read() as session:
            for run in session.execute(query):
                left = 0 if run.status.is_finished else run.num_steps - run.step
                total += (run.steps_executed + left) * (run.planned // run.num_steps)
        return total

    def newest_fit(self, study_id: int) -> Fit | None:
        """The law fitted last, or None."""
        query = select(Fit).where(Fit.study_id == study_id).order_by(Fit.id.desc()).limit(1)
        with self._read() as session:
            return session.scalar(query)

    def predictions(self, study_id: int) -> list[Prediction]:
        """What was predicted of promotions before they trained, oldest first."""
        query = select(Prediction).where(Prediction.study_id == study_id).order_by(Prediction.id)
        return self._all(query)

    def rejections(self, study_id: int) -> list[Rejection]:
        """Refused proposals of a study by number."""
        query = select(Rejection).where(Rejection.study_id == study_id).order_by(Rejection.number)
        return self._all(query)

    def spending(self, study_id: int) -> dict[int, Spending]:
        """What each run planned, spent and lost so far, by run id; exact."""
        with self._read() as session:
            return ledger.read_spending(session.connection(), study_id)

    def ledger(self, study_id: int) -> Spending:
        """What the study planned, spent and lost so far; exact."""
        return sum(self.spending(study_id).values(), Spending())
