"""One dispatcher a study."""

from __future__ import annotations

import datetime as dt
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import update

from budgetsweep.errors import StudyError
from studies.database import tables
from studies.database.leases import Owner
from studies.database.store import Store
from tests.support.processes import ROOT

HOLDER = """
import sys, time
from studies.database.store import Store
store = Store.open(sys.argv[1])
store.acquire_lease(store.study("s").id, seconds=float(sys.argv[2]))
print("held", flush=True)
time.sleep(60)
"""


Hold = Callable[[float], subprocess.Popen[str]]


@pytest.fixture
def hold(database: str) -> Iterator[Hold]:
    """Has another process take the lease of study `s` for some seconds."""
    started: list[subprocess.Popen[str]] = []

    def start(seconds: float) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", HOLDER, database, str(seconds)]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def written_by(store: Store, study: tables.Study, owner: Owner, seconds: float) -> None:
    """The lease as a process elsewhere would have left it."""
    until = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=seconds)
    with store._write() as connection:
        connection.execute(
            update(tables.Study)
            .where(tables.Study.id == study.id)
            .values(lease_owner=str(owner), lease_until_utc=until)
        )


def test_a_live_dispatcher_keeps_others_out(store: Store, study: tables.Study, hold: Hold) -> None:
    process = hold(60.0)
    started = dt.datetime.fromtimestamp(psutil.Process(process.pid).create_time(), dt.UTC)
    with pytest.raises(StudyError) as caught:
        store.acquire_lease(study.id)
    message = str(caught.value)
    host = os.uname().nodename
    assert re.match(rf"study 's' is being worked on by process {process.pid} on {host} ", message)
    assert f"(running since {started:%Y-%m-%d %H:%M}" in message
    with pytest.raises(StudyError, match=f"process {process.pid} "):
        store.renew_lease(study.id)
    store.release_lease(study.id)  # not ours: nothing happens
    with pytest.raises(StudyError, match=f"process {process.pid} "):
        store.acquire_lease(study.id)


@pytest.mark.parametrize("reaped", [True, False])
def test_a_killed_dispatcher_is_followed_at_once(
    store: Store, study: tables.Study, hold: Hold, reaped: bool
) -> None:
    process = hold(3600.0)
    process.send_signal(signal.SIGKILL)
    if reaped:
        process.wait()
    else:
        deadline = time.monotonic() + 10
        while psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    store.acquire_lease(study.id)
    store.renew_lease(study.id)


def test_a_lease_that_ran_out_is_taken_over_and_its_holder_finds_out(
    store: Store, study: tables.Study
) -> None:
    other = replace(Owner.this_process(), host="elsewhere", pid=7)
    written_by(store, study, other, seconds=30.0)
    with pytest.raises(StudyError, match="process 7 on elsewhere"):
        store.acquire_lease(study.id)
    written_by(store, study, other, seconds=-0.1)
    store.acquire_lease(study.id)
    assert store.study("s").lease_owner == str(Owner.this_process())
    written_by(store, study, other, seconds=30.0)  # we slept, the other one took over
    with pytest.raises(StudyError, match="process 7 on elsewhere"):
        store.renew_lease(study.id)


def test_renewing_moves_the_end(store: Store, study: tables.Study) -> None:
    store.acquire_lease(study.id, seconds=10.0)
    first = store.study("s").lease_until_utc
    store.renew_lease(study.id, seconds=100.0)
    second = store.study("s").lease_until_utc
    assert first is not None
    assert second is not None
    assert 85.0 < (second - first).total_seconds() < 95.0
    assert abs((first - dt.datetime.now(dt.UTC)).total_seconds() - 10.0) < 5.0


def test_a_released_lease_is_free(store: Store, study: tables.Study, hold: Hold) -> None:
    store.acquire_lease(study.id)
    store.acquire_lease(study.id)  # again by the same process
    store.release_lease(study.id)
    assert store.study("s").lease_owner is None
    with pytest.raises(StudyError, match="no longer held by this process"):
        store.renew_lease(study.id)
    hold(60.0)


def test_leases_of_two_studies_are_apart(store: Store, study: tables.Study) -> None:
    second = store.create_study("t", study.settings)
    written_by(store, study, replace(Owner.this_process(), host="elsewhere"), seconds=30.0)
    store.acquire_lease(second.id)
    owners = [store.study(name).lease_owner for name in ("s", "t")]
    assert None not in owners
    assert owners[0] != owners[1]


def test_of_many_that_try_at_once_one_wins(store: Store, study: tables.Study) -> None:
    """Processes of other hosts, played by threads that each write under a name of their own."""
    won: list[int] = []

    def attempt(n: int) -> None:
        me = replace(Owner.this_process(), host=f"host{n}")
        with pytest.MonkeyPatch.context() as patch, store._write() as connection:
            patch.setattr(Owner, "this_process", classmethod(lambda _: me))
            from studies.database import leases

            try:
                leases.acquire(connection, study.id, 60.0)
            except StudyError:
                return
            won.append(n)

    threads = [threading.Thread(target=attempt, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1


class TestOwner:
    @given(
        st.text(st.characters(exclude_characters=":", codec="utf-8"), min_size=1, max_size=60),
        st.integers(0, 2**31),
        st.integers(0, 2**33).map(lambda n: n / 4),
        st.text("0123456789"),
    )
    def test_text_round_trip(self, host: str, pid: int, started: float, namespace: str) -> None:
        owner = Owner(host, pid, started, namespace)
        assert Owner.parse(str(owner)) == owner

    def test_this_process_is_itself_after_a_round_trip(self) -> None:
        me = Owner.this_process()
        assert len(str(me)) <= 200
        assert not me.is_dead(me)

    def test_a_pid_that_was_reused_is_another_process(self) -> None:
        me = Owner.this_process()
        parent = psutil.Process(os.getppid())
        alive = replace(me, pid=parent.pid, started=parent.create_time())
        assert not alive.is_dead(me)
        assert replace(alive, started=alive.started - 3600).is_dead(me)
        assert replace(me, started=me.started - 1).is_dead(me), "our own pid, held before us"

    def test_a_process_elsewhere_is_never_judged(self) -> None:
        me = Owner.this_process()
        gone = replace(me, pid=2**22 + 1)
        assert gone.is_dead(me)
        assert not replace(gone, host="elsewhere").is_dead(me)
        assert not replace(gone, namespace="1").is_dead(me), "another container's pids"
