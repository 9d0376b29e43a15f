"""The life of a run, arrow by arrow, inside a transaction of `studies.database.store`.

queued -> running -> complete | pruned | failed;  running -> interrupted -> running
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Sequence
from dataclasses import fields
from typing import Any, NamedTuple

from sqlalchemy import Connection, delete, insert, select, update

from budgetsweep.errors import BudgetsweepError
from studies.database import ledger
from studies.database.ledger import Amount
from studies.database.tables import LedgerEntry, Point, Run, Study
from trainer import events
from trainer.events import RunStatus

ARROWS = {
    RunStatus.QUEUED: (RunStatus.RUNNING,),
    RunStatus.RUNNING: (RunStatus.INTERRUPTED, *(s for s in RunStatus if s.is_finished)),
    RunStatus.INTERRUPTED: (RunStatus.RUNNING,),
}
"""Where a run may go from each status."""

_POINT_COLUMNS = tuple(column.name for column in Point.__table__.columns)
_POINTS_AT_ONCE = 500
_RESULT_COLUMNS = {f.name for f in fields(events.RunResult)} & {*Run.__table__.columns.keys()}
_MEASURED = [name for name in _RESULT_COLUMNS if name.endswith(("_nats", "_ppl", "_per_byte"))]
"""Figures that can be NaN or infinite: then they are missing."""


class IllegalChangeError(BudgetsweepError):
    """A change that no run can make. A defect of the caller; nothing was written."""


class RunState(NamedTuple):
    """The columns of a run that decide what may happen to it."""

    id: int
    study_id: int
    status: RunStatus
    attempts: int
    started_utc: dt.datetime | None
    step: int
    steps_executed: int
    num_steps: int
    tokens_per_step: int
    planned_flops_nanogpt: int
    planned_flops_matmul: int
    planned_flops_mac: int


def now() -> dt.datetime:
    """The time, in UTC."""
    return dt.datetime.now(dt.UTC)


def finite(value: float | None) -> float | None:
    """A figure, or None where it is not a number one can compare: missing is NULL."""
    return value if value is not None and math.isfinite(value) else None


def storable(text: str) -> str:
    """Text as every database takes it: without NUL and half characters."""
    return text.replace("\x00", "").encode("utf-8", "replace").decode()


def lock_study(connection: Connection, study_id: int) -> None:
    """Serialise the writers of a study on servers; SQLite's BEGIN IMMEDIATE has done so."""
    found = connection.scalar(select(Study.id).where(Study.id == study_id).with_for_update())
    if found is None:
        raise IllegalChangeError(f"there is no study {study_id}")


def lock_run(connection: Connection, run_id: int, *, to: RunStatus | None = None) -> RunState:
    """The run, locked with its study (ledger ids then grow in order of commit).

    Raises:
        IllegalChangeError: there is no such run, or it cannot become `to`.
    """
    row = connection.execute(
        select(*(getattr(Run, name) for name in RunState._fields))
        .join(Study, Study.id == Run.study_id)
        .where(Run.id == run_id)
        .with_for_update()
    ).one_or_none()
    if row is None:
        raise IllegalChangeError(f"there is no run {run_id}")
    run = RunState._make(row)
    if to is not None and to not in ARROWS.get(run.status, ()):
        raise IllegalChangeError(f"run {run_id} cannot go from {run.status} to {to}")
    return run


def change(connection: Connection, run_id: int, **values: Any) -> None:
    """Set columns of a run."""
    connection.execute(update(Run).where(Run.id == run_id).values(**values))


def start(connection: Connection, run_id: int) -> int:
    """Queued or interrupted -> running; returns the attempt, from 1."""
    run = lock_run(connection, run_id, to=RunStatus.RUNNING)
    attempt = run.attempts + 1
    started = run.started_utc or now()
    change(connection, run_id, status=RunStatus.RUNNING, attempts=attempt, started_utc=started)
    return attempt


def executed(
    connection: Connection, run_id: int, steps_executed: int, step: int | None = None
) -> None:
    """Enter what the meter of a running or interrupted run shows, and its newest checkpoint."""
    run = lock_run(connection, run_id)
    if run.status not in (RunStatus.RUNNING, RunStatus.INTERRUPTED):
        raise IllegalChangeError(f"steps of run {run_id}, which is {run.status}")
    step = run.step if step is None else step
    if run.status == RunStatus.INTERRUPTED:
        values = _rest(connection, run, step, steps_executed)
    else:
        _check_step(run, step, steps_executed)
        _spend(connection, run, steps_executed)
        values = {"step": step, "steps_executed": steps_executed}
    change(connection, run_id, **values)


def interrupt(connection: Connection, run_id: int, step: int, steps_executed: int) -> None:
    """Running -> interrupted; the run resumes after `step`."""
    run = lock_run(connection, run_id, to=RunStatus.INTERRUPTED)
    rest = _rest(connection, run, step, steps_executed)
    change(connection, run_id, status=RunStatus.INTERRUPTED, **rest)


def finish(connection: Connection, run_id: int, result: events.RunResult) -> None:
    """Running -> complete, pruned or failed; points after `result.step` are removed."""
    if not result.status.is_finished:
        raise IllegalChangeError(f"run {run_id} is {result.status}, not finished")
    run = lock_run(connection, run_id, to=result.status)
    if result.status == RunStatus.COMPLETE and result.step != run.num_steps:
        raise IllegalChangeError(
            f"run {run_id} is complete at step {result.step} of {run.num_steps}"
        )
    rest = _rest(connection, run, result.step, result.steps_executed)
    connection.execute(delete(Point).where(Point.run_id == run_id, Point.step > result.step))
    values = {name: value for name, value in vars(result).items() if name in _RESULT_COLUMNS}
    for name in _MEASURED:
        values[name] = finite(values[name])
    values["reason"] = result.reason and storable(result.reason)
    values["device_name"] = result.device_name and result.device_name[:200]
    change(connection, run_id, **{**values, **rest}, finished_utc=now())


def _rest(connection: Connection, run: RunState, step: int, steps_executed: int) -> dict[str, int]:
    """The run rests at `step`: settle what it spent and what of that was lost."""
    _check_step(run, step, steps_executed)
    _spend(connection, run, steps_executed)
    return {
        "step": step,
        "steps_executed": steps_executed,
        "steps_recomputed": steps_executed - step,
    }


def _check_step(run: RunState, step: int, steps_executed: int) -> None:
    if not 0 <= step <= min(run.num_steps, steps_executed):
        raise IllegalChangeError(
            f"run {run.id} is at step {step} of {run.num_steps} with {steps_executed} computed"
        )


def _spend(connection: Connection, run: RunState, steps_executed: int) -> None:
    """Enter the steps computed since the last report."""
    new = steps_executed - run.steps_executed
    if new < 0:
        raise IllegalChangeError(
            f"run {run.id} reports {steps_executed} steps computed, {run.steps_executed} before"
        )
    if new > 0:
        planned = [run.planned_flops_nanogpt, run.planned_flops_matmul, run.planned_flops_mac]
        amount = ledger.of_steps(new, run.num_steps, run.tokens_per_step, planned)
        enter(connection, run.study_id, run.id, "spent", run.attempts, amount)


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


def add_points(connection: Connection, run_id: int, points: Sequence[events.Point]) -> None:
    """Record points of a running run."""
    run = lock_run(connection, run_id)
    if run.status != RunStatus.RUNNING:
        raise IllegalChangeError(f"points of run {run_id}, which is {run.status}")
    for first in range(0, len(points), _POINTS_AT_ONCE):
        _put_points(connection, run_id, points[first : first + _POINTS_AT_ONCE])


def _put_points(connection: Connection, run_id: int, points: Sequence[events.Point]) -> None:
    steps = {point.step for point in points}
    there = (Point.run_id == run_id) & Point.step.in_(steps)
    rows = {
        row.step: dict(zip(_POINT_COLUMNS, row, strict=True))
        for row in connection.execute(select(*Point.__table__.columns).where(there))
    }
    if rows:
        connection.execute(delete(Point).where(there))
    for point in points:
        old = rows.get(point.step, {})
        new = {name: finite(getattr(point, name)) for name in _POINT_COLUMNS if name != "run_id"}
        kept = {name: old.get(name) if value is None else value for name, value in new.items()}
        rows[point.step] = {"run_id": run_id, **kept}
    connection.execute(insert(Point), [rows[step] for step in sorted(rows)])
