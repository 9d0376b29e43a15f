"""One dispatcher a study: who holds it, and whether that process still lives."""

from __future__ import annotations

import datetime as dt
import functools
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from sqlalchemy import Connection, func, select, update

from budgetsweep.errors import StudyError
from studies.database.tables import Study

LEASE_SECONDS = 60.0
"""A lease that is not renewed for so long may be taken over."""

_SAME_START_SECONDS = 30.0
"""Two readings of one process's start may differ by so much, where the clock was set between them.

A pid that is reused sooner than that looks alive; the lease then runs out by itself.
"""


@dataclass(frozen=True)
class Owner:
    """A process that holds a lease."""

    host: str
    pid: int
    started: float
    """Start of the process, Unix seconds: pids are reused."""
    namespace: str
    """The pid namespace (a container's), or "": pids of another one say nothing here."""

    def __str__(self) -> str:
        return f"{self.host}:{self.pid}:{self.started:.2f}:{self.namespace}"

    @classmethod
    def parse(cls, text: str) -> Owner:
        """The owner that `str` wrote."""
        host, pid, started, namespace = text.rsplit(":", 3)
        return cls(host, int(pid), float(started), namespace)

    @classmethod
    def this_process(cls) -> Owner:
        """The process that asks."""
        return _owner(os.getpid())

    def is_dead(self, observer: Owner) -> bool:
        """Whether the process is known to be gone; False where `observer` cannot know."""
        if (self.host, self.namespace) != (observer.host, observer.namespace):
            return False
        if self.pid == observer.pid:
            return self != observer
        try:
            process = psutil.Process(self.pid)
            if process.status() == psutil.STATUS_ZOMBIE:
                return True
            return abs(process.create_time() - self.started) >= _SAME_START_SECONDS
        except psutil.NoSuchProcess:
            return True
        except psutil.AccessDenied:
            return False


@functools.cache
def _owner(pid: int) -> Owner:
    """Read once a process: a clock that is set later must not change who we are."""
    host = socket.gethostname().replace(":", "_")[:120]
    return Owner(host, pid, round(psutil.Process(pid).create_time(), 2), _pid_namespace())


def _pid_namespace() -> str:
    try:
        return str(Path("/proc/self/ns/pid").readlink()).strip("pid:[]")
    except OSError:
        return ""


def acquire(connection: Connection, study_id: int, seconds: float) -> None:
    """Take the lease of a study, in the transaction of `connection`.

    Raises:
        StudyError: another dispatcher holds it, is not known to be dead, and its time still runs.
    """
    study = _locked(connection, study_id)
    me = Owner.this_process()
    now = _now(connection)
    if study.lease_owner is not None:
        owner = Owner.parse(study.lease_owner)
        free = owner == me or owner.is_dead(me) or study.lease_until_utc <= now
        if not free:
            raise StudyError(_held(study.name, owner, study.lease_until_utc))
    _set(connection, study_id, str(me), now, seconds)


def renew(connection: Connection, study_id: int, seconds: float) -> None:
    """Hold the lease for `seconds` from now.

    Raises:
        StudyError: it was given up, or another dispatcher has taken it over; stop working on it.
    """
    study = _locked(connection, study_id)
    if not _mine(study.lease_owner):
        if study.lease_owner is None:
            raise StudyError(f"study {study.name!r} is no longer held by this process; start again")
        raise StudyError(_held(study.name, Owner.parse(study.lease_owner), study.lease_until_utc))
    _set(connection, study_id, study.lease_owner, _now(connection), seconds)


def release(connection: Connection, study_id: int) -> None:
    """Give the lease back; nothing happens where another dispatcher has it."""
    if _mine(_locked(connection, study_id).lease_owner):
        connection.execute(
            update(Study).where(Study.id == study_id).values(lease_owner=None, lease_until_utc=None)
        )


def _locked(connection: Connection, study_id: int) -> Any:
    """Name, holder and end of a study's lease, locked until the transaction ends."""
    query = select(Study.name, Study.lease_owner, Study.lease_until_utc)
    return connection.execute(query.where(Study.id == study_id).with_for_update()).one()


def _mine(owner: str | None) -> bool:
    return owner is not None and Owner.parse(owner) == Owner.this_process()


def _set(
    connection: Connection, study_id: int, owner: str, now: dt.datetime, seconds: float
) -> None:
    connection.execute(
        update(Study)
        .where(Study.id == study_id)
        .values(lease_owner=owner, lease_until_utc=now + dt.timedelta(seconds=seconds))
    )


def _now(connection: Connection) -> dt.datetime:
    """The database server's clock, the only one that several hosts share; SQLite has ours."""
    if connection.dialect.name == "postgresql":
        now: dt.datetime = connection.execute(select(func.clock_timestamp())).scalar_one()
        return now.astimezone(dt.UTC)
    return dt.datetime.now(dt.UTC)


def _held(name: str, owner: Owner, until: dt.datetime) -> str:
    since = dt.datetime.fromtimestamp(owner.started, dt.UTC)
    return (
        f"study {name!r} is being worked on by process {owner.pid} on {owner.host} "
        f"(running since {since:%Y-%m-%d %H:%M:%S} UTC); stop that process, or wait until "
        f"{until:%H:%M:%S} UTC if it is gone"
    )
