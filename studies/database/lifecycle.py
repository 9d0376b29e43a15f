"""The life of a run, arrow by arrow; each is one committed transaction.

queued -> running -> complete | pruned | failed;  running -> interrupted -> running
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

from sqlalchemy import JSON, Connection, Engine, Row, delete, insert, select, update

from studies.database import ledger
from studies.database.connection import BEGIN_OPTION, WRITE, clear_errors
from studies.database.ledger import Amount
from studies.database.reader import IllegalChangeError, Reader
from studies.database.tables import LedgerEntry, PointRow, Run, Study
from trainer import events
from trainer.events import RunStatus

ARROWS = {
    RunStatus.QUEUED: (RunStatus.RUNNING,),
    RunStatus.RUNNING: (RunStatus.INTERRUPTED, *(s for s in RunStatus if s.is_finished)),
    RunStatus.INTERRUPTED: (RunStatus.RUNNING,),
}
"""Where a run may go from each status."""

_POINT_COLUMNS = tuple(column.name for column in PointRow.__table__.columns)
_POINTS_AT_ONCE = 500
_RESULT_COLUMNS = {f.name for f in fields(events.RunResult)} & {*Run.__table__.columns.keys()}
_MEASURED = [name for name in _RESULT_COLUMNS if name.endswith(("_nats", "_ppl", "_per_byte"))]
"""Figures that can be NaN or infinite: then they are missing."""


class RunWriter(Reader):
    """Takes runs along the arrows.

    A change that no run can make is an `IllegalChangeError`, and nothing is written.
    """

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self._writer = engine.execution_options(**{BEGIN_OPTION: WRITE})

    @contextmanager
    def _write(self) -> Iterator[Connection]:
        with clear_errors(self._where), self._writer.begin() as connection:
            yield connection

    def start_attempt(self, run_id: int) -> int:
        """A worker takes the run up (queued or interrupted -> running); the attempt, from 1."""
        with self._write() as connection:
            run = _lock_run(connection, run_id, to=RunStatus.RUNNING)
            attempt: int = run.attempts + 1
            _change(
                connection, run_id, status=RunStatus.RUNNING, attempts=attempt,
                started_utc=run.started_utc or now(),
            )  # fmt: skip
            return attempt

    def add_points(self, run_id: int, points: Sequence[events.Point]) -> None:
        """Record points of the learning curves of a running run.

        A step that is there already (a resumed run computes some again) takes the new figures;
        a figure that the new point lacks stays. Losses that are not finite are stored as missing.
        """
        if not points:
            return
        with self._write() as connection:
            run = _lock_run(connection, run_id)
            if run.status != RunStatus.RUNNING:
                raise IllegalChangeError(f"points of run {run_id}, which is {run.status}")
            for first in range(0, len(points), _POINTS_AT_ONCE):
                _put_points(connection, run_id, points[first : first + _POINTS_AT_ONCE])

    def record_executed(self, run_id: int, steps_executed: int, *, step: int | None = None) -> None:
        """Enter what the run's meter shows: all optimiser steps computed so far, in all attempts.

        Only what is new goes on the ledger, so the same figure may be reported again.

        Args:
            run_id: a running or interrupted run.
            steps_executed: never less than before.
            step: of its newest checkpoint, where there is a new one: a kill from now on resumes
                there.
        """
        with self._write() as connection:
            run = _lock_run(connection, run_id)
            if run.status not in (RunStatus.RUNNING, RunStatus.INTERRUPTED):
                raise IllegalChangeError(f"steps of run {run_id}, which is {run.status}")
            values = _charged(connection, run, run.step if step is None else step, steps_executed)
            if run.status == RunStatus.RUNNING:
                del values["steps_recomputed"]  # known when it stops
            _change(connection, run_id, **values)

    def interrupt_run(self, run_id: int, *, step: int, steps_executed: int) -> None:
        """The run has stopped for now (running -> interrupted); it resumes after `step`."""
        with self._write() as connection:
            run = _lock_run(connection, run_id, to=RunStatus.INTERRUPTED)
            values = _charged(connection, run, step, steps_executed)
            _change(connection, run_id, status=RunStatus.INTERRUPTED, **values)

    def finish_run(self, run_id: int, result: events.RunResult) -> None:
        """The run has ended (running -> complete, pruned or failed).

        Points after `result.step`, which a kill has left behind, are removed.
        """
        if not result.status.is_finished:
            raise IllegalChangeError(f"run {run_id} is {result.status}, not finished")
        with self._write() as connection:
            run = _lock_run(connection, run_id, to=result.status)
            if result.status == RunStatus.COMPLETE and result.step != run.num_steps:
                raise IllegalChangeError(
                    f"run {run_id} is complete at step {result.step} of {run.num_steps}"
                )
            charged = _charged(connection, run, result.step, result.steps_executed)
            later = (PointRow.run_id == run_id) & (PointRow.step > result.step)
            connection.execute(delete(PointRow).where(later))
            values = {name: getattr(result, name) for name in _RESULT_COLUMNS}
            for name in _MEASURED:
                values[name] = finite(values[name])
            values["reason"] = result.reason and _storable(result.reason)
            values["device_name"] = result.device_name and result.device_name[:200]
            _change(connection, run_id, **{**values, **charged}, finished_utc=now())


def now() -> dt.datetime:
    """The time, in UTC."""
    return dt.datetime.now(dt.UTC)


def finite(value: float | None) -> float | None:
    """A figure, or None where it is not a number one can compare: missing is NULL."""
    return value if value is not None and math.isfinite(value) else None


def _storable(text: str) -> str:
    """Text as every database takes it: without NUL and half characters."""
    return text.replace("\x00", "").encode("utf-8", "replace").decode()


def lock_study(connection: Connection, study_id: int) -> None:
    """Serialise the writers of a study on servers; SQLite's BEGIN IMMEDIATE has done so."""
    found = connection.scalar(select(Study.id).where(Study.id == study_id).with_for_update())
    if found is None:
        raise IllegalChangeError(f"there is no study {study_id}")


_LOCKED = [column for column in Run.__table__.columns if not isinstance(column.type, JSON)]


def _lock_run(connection: Connection, run_id: int, *, to: RunStatus | None = None) -> Row[Any]:
    """The run, locked with its study (ledger ids then grow in order of commit)."""
    run = connection.execute(
        select(*_LOCKED)
        .join(Study, Study.id == Run.study_id)
        .where(Run.id == run_id)
        .with_for_update()
    ).one_or_none()
    if run is None:
        raise IllegalChangeError(f"there is no run {run_id}")
    if to is not None and to not in ARROWS.get(run.status, ()):
        raise IllegalChangeError(f"run {run_id} cannot go from {run.status} to {to}")
    return run


def _change(connection: Connection, run_id: int, **values: Any) -> None:
    connection.execute(update(Run).where(Run.id == run_id).values(**values))


def _charged(
    connection: Connection, run: Row[Any], step: int, steps_executed: int
) -> dict[str, int]:
    """Enter the steps computed since the last report; the columns of a run that rests at `step`."""
    if not 0 <= step <= min(run.num_steps, steps_executed):
        raise IllegalChangeError(
            f"run {run.id} is at step {step} of {run.num_steps} with {steps_executed} computed"
        )
    new = steps_executed - run.steps_executed
    if new < 0:
        raise IllegalChangeError(
            f"run {run.id} reports {steps_executed} steps computed, {run.steps_executed} before"
        )
    if new > 0:
        planned = [run.planned_flops_nanogpt, run.planned_flops_matmul, run.planned_flops_mac]
        amount = ledger.of_steps(new, run.num_steps, run.tokens_per_step, planned)
        enter(connection, run.study_id, run.id, "spent", run.attempts, amount)
    return {
        "step": step,
        "steps_executed": steps_executed,
        "steps_recomputed": steps_executed - step,
    }


def enter(
    connection: Connection, study_id: int, run_id: int, entry: str, attempt: int, amount: Amount
) -> None:
    """Add an entry to the ledger."""
    connection.execute(
        insert(LedgerEntry).values(
            study_id=study_id,
            run_id=run_id,
            created_utc=now(),
            entry=entry,
            attempt=attempt,
            steps=amount.steps,
            tokens=amount.tokens,
            flops_nanogpt=amount.nanogpt,
            flops_matmul=amount.matmul,
            flops_mac=amount.mac,
        )
    )


def _put_points(connection: Connection, run_id: int, points: Sequence[events.Point]) -> None:
    steps = {point.step for point in points}
    there = (PointRow.run_id == run_id) & PointRow.step.in_(steps)
    rows = {
        row.step: dict(zip(_POINT_COLUMNS, row, strict=True))
        for row in connection.execute(select(*PointRow.__table__.columns).where(there))
    }
    if rows:
        connection.execute(delete(PointRow).where(there))
    for point in points:
        old = rows.get(point.step, {})
        new = {name: finite(getattr(point, name)) for name in _POINT_COLUMNS if name != "run_id"}
        kept = {name: old.get(name) if value is None else value for name, value in new.items()}
        rows[point.step] = {"run_id": run_id, **kept}
    connection.execute(insert(PointRow), [rows[step] for step in sorted(rows)])
