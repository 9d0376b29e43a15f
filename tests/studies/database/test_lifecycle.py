"""The life of a run against a plain-Python model, under kills and failing statements."""

from __future__ import annotations

import datetime as dt
import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule
from sqlalchemy import event, select

from studies.database import tables
from studies.database.ledger import Amount
from studies.database.run_kind import RunKind
from studies.database.store import IllegalChangeError, Store
from tests.support import tiny_studies
from tests.support.processes import ROOT
from tests.support.tiny_studies import run_config, study_settings
from trainer.config import RunConfig
from trainer.events import Point, RunResult, RunStatus

FINISHED = (RunStatus.COMPLETE, RunStatus.PRUNED, RunStatus.FAILED)
SHAPES = ((8, 1), (16, 2))
STEPS = 20


def config(width: int, layers: int) -> RunConfig:
    shape = {"n_embd": width, "n_head": 1, "n_positions": 4, "n_layer": layers}
    return run_config(model_config=shape, batch_size=3, seq_len=4, num_training_steps=STEPS)


def add_run(
    store: Store, number: int, shape: tuple[int, int] = (8, 1), kind: RunKind = RunKind.TRIAL
) -> int:
    return tiny_studies.add_run(store, store.study().id, number, kind=kind, config=config(*shape))


def step_cost(width: int, layers: int) -> Amount:
    """One optimiser step of `config`, from the formulas of the three conventions."""
    n_params = 257 * width + 4 * width + layers * (12 * width**2 + 13 * width) + 2 * width
    macs = 3 * (257 * width + layers * (12 * width**2 + 2 * width * 4))
    nanogpt = 6 * n_params + 12 * layers * width * 4
    return Amount(1, 12, 12 * nanogpt, 12 * 2 * macs, 12 * macs)


def total(parts: list[tuple[Amount, int]]) -> Amount:
    rows = [(n, n * a.tokens, n * a.nanogpt, n * a.matmul, n * a.mac) for a, n in parts]
    return Amount(*(sum(column) for column in zip(*rows, strict=True))) if rows else Amount()


@dataclass
class Model:
    """What we expect of one run."""

    cost: Amount
    kind: RunKind
    status: RunStatus = RunStatus.QUEUED
    attempts: int = 0
    step: int = 0
    executed: int = 0
    recomputed: int = 0
    started: dt.datetime | None = None
    points: dict[int, tuple[float | None, float | None]] = field(default_factory=dict)

    @property
    def left(self) -> int:
        """Steps that it may still take."""
        return 0 if self.status.is_finished else STEPS - self.step

    def has(self, step: int, executed: int) -> bool:
        """Whether a history of `step` steps can come of so many computed ones."""
        return 0 <= step <= min(STEPS, executed)


class Fault(Exception):
    """A statement that fails in the middle of a transaction."""


class Lives(RuleBasedStateMachine):
    """Any sequence of calls, kills and failures keeps the database equal to the model."""

    runs = Bundle("runs")
    template: Path

    @initialize()
    def open(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.path = self.folder / "runs.db"
        shutil.copy(self.template, self.path)
        self.store = Store.open(self.path, busy_seconds=1.0)
        self.killed: list[Store] = []
        self.study_id = self.store.study().id
        self.model: dict[int, Model] = {}
        self.countdown = -1

    def teardown(self) -> None:
        for store in (*self.killed, self.store):
            store.close()
        shutil.rmtree(self.folder)

    # What a dispatcher does.

    @rule(
        target=runs,
        shape=st.sampled_from(SHAPES),
        kind=st.sampled_from(RunKind),
    )
    def add(self, shape: tuple[int, int], kind: RunKind) -> int:
        run_id = add_run(self.store, len(self.model), shape, kind)
        assert run_id not in self.model
        self.model[run_id] = Model(step_cost(*shape), kind)
        return run_id

    @rule(run_id=runs)
    def start(self, run_id: int) -> None:
        run = self.model[run_id]
        if run.status not in (RunStatus.QUEUED, RunStatus.INTERRUPTED):
            self.refused(lambda: self.store.start_attempt(run_id))
            return
        run.status, run.attempts = RunStatus.RUNNING, run.attempts + 1
        assert self.store.start_attempt(run_id) == run.attempts

    @rule(
        run_id=runs,
        steps=st.lists(st.integers(1, STEPS), min_size=1, max_size=5),
        loss=st.floats(0, 10) | st.none(),
        validated=st.booleans(),
    )
    def report(self, run_id: int, steps: list[int], loss: float | None, validated: bool) -> None:
        run = self.model[run_id]
        val_loss = loss if validated else None
        points = [Point(s, 12 * s, 9 * s, 0.1, loss, val_loss) for s in steps]
        if run.status != RunStatus.RUNNING:
            self.refused(lambda: self.store.add_points(run_id, points))
            return
        self.store.add_points(run_id, points)
        for step in steps:
            old = run.points.get(step, (None, None))
            new = (loss, val_loss)
            run.points[step] = tuple(o if n is None else n for o, n in zip(old, new, strict=True))  # type: ignore[assignment]

    @rule(
        run_id=runs,
        more=st.integers(-2, STEPS),
        checkpoint=st.none() | st.integers(-1, STEPS + 1),
    )
    def meter(self, run_id: int, more: int, checkpoint: int | None) -> None:
        run = self.model[run_id]
        executed = run.executed + more
        step = run.step if checkpoint is None else checkpoint
        fits = more >= 0 and run.has(step, executed)
        if run.status not in (RunStatus.RUNNING, RunStatus.INTERRUPTED) or not fits:
            self.refused(lambda: self.store.record_executed(run_id, executed, step=checkpoint))
            return
        self.store.record_executed(run_id, executed, step=checkpoint)
        run.executed, run.step = executed, step
        if run.status == RunStatus.INTERRUPTED:
            run.recomputed = executed - step

    @rule(run_id=runs, step=st.integers(-1, STEPS + 1), more=st.integers(-1, STEPS))
    def interrupt(self, run_id: int, step: int, more: int) -> None:
        run = self.model[run_id]
        executed = run.executed + more
        fits = more >= 0 and run.has(step, executed)
        if run.status != RunStatus.RUNNING or not fits:
            self.refused(
                lambda: self.store.interrupt_run(run_id, step=step, steps_executed=executed)
            )
            return
        self.store.interrupt_run(run_id, step=step, steps_executed=executed)
        run.status, run.step, run.executed = RunStatus.INTERRUPTED, step, executed
        run.recomputed = executed - step

    @rule(
        run_id=runs,
        status=st.sampled_from([*FINISHED, RunStatus.INTERRUPTED]),
        short=st.sampled_from([0, 0, 0, 1, 5, STEPS, -1]),
        more=st.integers(-1, 2 * STEPS),
    )
    def finish(self, run_id: int, status: RunStatus, short: int, more: int) -> None:
        run = self.model[run_id]
        step, executed = STEPS - short, run.executed + more
        result = RunResult(status, step, executed, 12 * step, reason="why", val_loss_nats=1.5)
        fits = more >= 0 and run.has(step, executed) and status != RunStatus.INTERRUPTED
        if (
            run.status != RunStatus.RUNNING
            or not fits
            or (status == RunStatus.COMPLETE and step != STEPS)
        ):
            self.refused(lambda: self.store.finish_run(run_id, result))
            return
        self.store.finish_run(run_id, result)
        run.status, run.step, run.executed = status, step, executed
        run.recomputed = executed - step
        run.points = {s: p for s, p in run.points.items() if s <= step}

    # What happens to it.

    @rule()
    def kill(self) -> None:
        """The process is gone: nothing is closed, the next one opens the file anew."""
        self.killed.append(self.store)
        self.store = Store.open(self.path, busy_seconds=1.0)

    @rule(run_id=runs, nth=st.integers(1, 6), steps=st.integers(0, STEPS))
    def fail_half_way(self, run_id: int, nth: int, steps: int) -> None:
        """The n-th statement of a transaction never happens: nothing of it may remain."""
        run = self.model[run_id]
        if run.status != RunStatus.RUNNING:
            return
        left = nth

        @event.listens_for(self.store.engine, "before_cursor_execute")
        def _fail(*_: object) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                raise Fault

        executed = run.executed + steps
        result = RunResult(RunStatus.FAILED, min(STEPS, executed), executed, 0)
        try:
            self.store.finish_run(run_id, result)
        except Fault:
            pass
        else:
            run.status, run.step, run.executed = RunStatus.FAILED, result.step, executed
            run.recomputed = executed - result.step
            run.points = {s: p for s, p in run.points.items() if s <= result.step}
        finally:
            event.remove(self.store.engine, "before_cursor_execute", _fail)

    def refused(self, call: Any) -> None:
        with pytest.raises(IllegalChangeError):
            call()

    # What must hold.

    @invariant()
    def database_equals_model(self) -> None:
        rows = {run.id: run for run in self.store.runs(self.study_id)}
        points: dict[int, dict[int, tuple[float | None, float | None]]] = {i: {} for i in rows}
        with self.store.engine.connect() as connection:
            for p in connection.execute(select(*tables.PointRow.__table__.columns)):
                points[p.run_id][p.step] = (p.train_loss_nats, p.val_loss_nats)
            entered = connection.scalars(select(tables.LedgerEntry.steps))
            assert 0 not in set(entered), "no entry of nothing"
        assert set(rows) == set(self.model)
        for run_id, run in self.model.items():
            row = rows[run_id]
            got = (row.status, row.attempts, row.step, row.steps_executed, row.steps_recomputed)
            assert got == (run.status, run.attempts, run.step, run.executed, run.recomputed)
            assert (row.started_utc is None) == (run.attempts == 0)
            run.started = run.started or row.started_utc
            assert row.started_utc == run.started, "that of the first attempt"
            assert (row.finished_utc is not None) == run.status.is_finished
            assert points[run_id] == run.points

    @invariant()
    def ledger_is_exact(self) -> None:
        runs = self.model.values()
        totals = self.store.ledger(self.study_id)
        assert totals.planned == total([(run.cost, STEPS) for run in runs])
        for kind in (RunKind.TRIAL, None):
            assert self.store.committed_flops(self.study_id, "matmul", kind=kind) == sum(
                run.cost.matmul
                * (run.executed + (0 if run.status.is_finished else STEPS - run.step))
                for run in runs
                if kind in (run.kind, None)
            )
        assert totals.spent == total([(run.cost, run.executed) for run in runs])
        assert totals.recomputed == total([(run.cost, run.recomputed) for run in runs])


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty study, made once and copied for each example."""
    path = tmp_path_factory.mktemp("template") / "runs.db"
    with Store.open(path, create=True) as store:
        store.create_study("s", study_settings())
    return path


@pytest.mark.slow
def test_any_life(template: Path) -> None:
    """What can fail are the assertions in the rules and invariants of `Lives`."""
    from hypothesis.stateful import run_state_machine_as_test

    Lives.template = template
    limits = settings(
        max_examples=15,
        stateful_step_count=30,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(Lives, settings=limits)


WRITER = """
import sys
from tests.studies.database.test_lifecycle import add_run
from studies.database.store import Store
from trainer.events import Point, RunResult, RunStatus
store = Store.open(sys.argv[1])
study = store.study()
for number in range(len(store.runs(study.id)), 10**6):
    run = add_run(store, number)
    store.start_attempt(run)
    for step in range(5, 25, 5):
        store.add_points(run, [Point(s, 0, 0, 0.0) for s in range(step - 4, step + 1)])
        store.record_executed(run, step)
        if step == 15 and number % 2:
            store.interrupt_run(run, step=10, steps_executed=15)
            store.start_attempt(run)
            store.record_executed(run, 20)
    store.finish_run(run, RunResult(RunStatus.COMPLETE, 20, 20, 240))
    print("run", flush=True)
"""


@pytest.mark.slow
def test_sigkill_at_any_moment(template: Path, tmp_path: Path) -> None:
    """A process that writes as fast as it can is killed again and again."""
    path = tmp_path / "runs.db"
    shutil.copy(template, path)
    dice = random.Random(7)
    cost = step_cost(8, 1)
    for _ in range(4):
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        ) as process:
            assert process.stdout is not None
            for _ in range(dice.randint(1, 3)):
                assert process.stdout.readline() == "run\n"
            time.sleep(dice.uniform(0.0, 0.05))
            process.send_signal(signal.SIGKILL)
        with Store.open(path) as store:
            study = store.study()
            runs = store.runs(study.id)
            assert [run.number for run in runs] == list(range(len(runs)))
            totals = store.ledger(study.id)
            assert totals.planned == total([(cost, STEPS * len(runs))])
            assert totals.spent == total([(cost, sum(run.steps_executed for run in runs))])
            for run in runs:
                steps = [p.step for p in store.points(run.id)]
                assert len(steps) % 5 == 0, "points of one report come together"
                assert steps == list(range(1, len(steps) + 1))
                if run.status == RunStatus.COMPLETE:
                    assert (run.steps_executed, len(steps)) == (20, 20)
                    assert run.finished_utc is not None
            left = [run.number for run in runs if not run.status.is_finished]
            assert left in ([], [len(runs) - 1])
            for run in store.runs(study.id, statuses=[RunStatus.QUEUED, RunStatus.INTERRUPTED]):
                store.start_attempt(run.id)
            for run in store.runs(study.id, statuses=[RunStatus.RUNNING]):
                result = RunResult(RunStatus.COMPLETE, 20, max(20, run.steps_executed), 240)
                store.add_points(run.id, [Point(s, 0, 0, 0.0) for s in range(1, 21)])
                store.finish_run(run.id, result)
    assert len(runs) >= 4


PATHS = {
    RunStatus.QUEUED: (),
    RunStatus.RUNNING: (RunStatus.RUNNING,),
    **{status: (RunStatus.RUNNING, status) for status in (RunStatus.INTERRUPTED, *FINISHED)},
}
"""How a run comes to be in each status."""
LEGAL = {
    ("queued", "running"), ("running", "interrupted"), ("interrupted", "running"),
    ("running", "complete"), ("running", "pruned"), ("running", "failed"),
}  # fmt: skip


def test_every_arrow(template: Path, tmp_path: Path) -> None:
    shutil.copy(template, tmp_path / "runs.db")
    names = [column.name for column in tables.Run.__table__.columns]
    pairs = itertools.product(RunStatus, [s for s in RunStatus if s != RunStatus.QUEUED])
    with Store.open(tmp_path / "runs.db") as store:

        def go(run_id: int, to: RunStatus) -> None:
            if to == RunStatus.RUNNING:
                store.start_attempt(run_id)
            elif to == RunStatus.INTERRUPTED:
                store.interrupt_run(run_id, step=STEPS, steps_executed=STEPS)
            else:
                store.finish_run(run_id, RunResult(to, STEPS, STEPS, 12 * STEPS))

        for number, (start, end) in enumerate(pairs):
            run_id = add_run(store, number)
            for status in PATHS[start]:
                go(run_id, status)
            before = store.run(run_id)
            if (start, end) in LEGAL:
                go(run_id, end)
                assert store.run(run_id).status is end
                continue
            with pytest.raises(IllegalChangeError, match=f"from {start} to {end}"):
                go(run_id, end)
            after = store.run(run_id)
            assert [getattr(after, n) for n in names] == [getattr(before, n) for n in names]
