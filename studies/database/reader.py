"""Questions to a study database. Objects come detached: plain data, no open transaction."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from sqlalchemy import Engine, or_, select
from sqlalchemy.orm import Session

from budgetsweep.config import did_you_mean
from budgetsweep.errors import StudyError
from model.flops import Convention
from studies.database import connection, ledger
from studies.database.ledger import LedgerTotals
from studies.database.lifecycle import IllegalChangeError
from studies.database.tables import Fit, Point, Prediction, Rejection, Run, RunKind, Study
from trainer.events import RunStatus

if TYPE_CHECKING:
    from studies.diagnosis.curves import Curve


class Reader:
    """Reads studies. Safe to use from several threads."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._where = connection.describe(engine.url)
        self._totals: dict[int, LedgerTotals] = {}

    @contextmanager
    def _read(self) -> Iterator[Session]:
        with (
            connection.clear_errors(self._where),
            Session(self.engine, expire_on_commit=False) as session,
        ):
            yield session

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
        with self._read() as session:
            return list(session.scalars(select(Study.name).order_by(Study.id)))

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
        with self._read() as session:
            return list(session.scalars(query.order_by(Run.number, Run.id)))

    def points(self, run_id: int) -> list[Point]:
        """The learning curves of a run, by step."""
        query = select(Point).where(Point.run_id == run_id).order_by(Point.step)
        with self._read() as session:
            return list(session.scalars(query))

    def curves(self, study_id: int) -> dict[int, Curve]:
        """The learning curves of a study's runs by run id; a run without points is missing."""
        from studies.diagnosis.study_curves import (
            read_curves,  # loads numpy, which no other query needs
        )

        with self._read() as session:
            return read_curves(session, study_id)

    def config_hashes(self, study_id: int) -> set[str]:
        """`config_hash` of every run of a study."""
        with self._read() as session:
            return set(session.scalars(select(Run.config_hash).where(Run.study_id == study_id)))

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
        with self._read() as session:
            return list(session.scalars(query))

    def rejections(self, study_id: int) -> list[Rejection]:
        """Refused proposals of a study by number."""
        query = select(Rejection).where(Rejection.study_id == study_id).order_by(Rejection.number)
        with self._read() as session:
            return list(session.scalars(query))

    def ledger(self, study_id: int) -> LedgerTotals:
        """What the study planned, spent and lost so far; exact."""
        with self._read() as session:
            totals = ledger.read_totals(session.connection(), study_id, self._totals.get(study_id))
        self._totals[study_id] = totals
        return totals
