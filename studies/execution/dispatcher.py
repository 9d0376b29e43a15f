"""The dispatcher: hands runs to workers and puts all that happens into the store.

One loop serves search and promotion; they differ in where the next run comes from (`RunSource`).
The dispatcher is the only process that writes. Whatever is killed, at whatever moment, the next
start finds each run either finished or with a checkpoint, and the FLOPs of lost work on its meter.
"""

from __future__ import annotations

import dataclasses
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from budgetsweep.config import parse
from budgetsweep.errors import StudyError
from studies.database.store import Store
from studies.database.tables import Run, Study
from studies.execution.base import Executor
from studies.execution.messages import Job, RunEvent, RunLost
from studies.trackers.base import Observer, RunView
from trainer.config import RunConfig
from trainer.events import Checkpointed, Point, Progress, RunResult, RunStatus

LEASE_SECONDS = 60.0
POLL_SECONDS = 0.2
FLUSH_SECONDS = 2.0
"""Points wait so long for company: one commit holds many."""
MAX_DEATHS = 2
"""A run whose worker died more often than this is failed: it would kill the next one too."""


class RunSource(Protocol):
    """Where runs come from and who wants to know how they end."""

    def next_run(self) -> Run | None:
        """A queued or interrupted run to start now; None: there is none (any more)."""

    def meanwhile(self) -> None:
        """All workers have work: time for what need not delay the next run."""

    def validated(self, run: Run, fraction: float, point: Point) -> bool:
        """A validation loss at a fraction of the run's budget; True: prune it."""

    def finished(self, run: Run, result: RunResult) -> None:
        """The run is complete, pruned or failed, and stored."""


class Dispatcher:
    """Runs what a source gives until it gives no more or somebody says stop."""

    def __init__(
        self,
        store: Store,
        study: Study,
        executor: Executor,
        source: RunSource,
        observer: Observer,
        *,
        should_stop: Callable[[], bool],
        should_kill: Callable[[], bool],
        pruning: bool = False,
    ) -> None:
        """Wire the parts together.

        Args:
            store: the study's database; its lease is held.
            study: the study's row.
            executor: what carries runs out, started.
            source: where runs come from.
            observer: who watches.
            should_stop: asked often; True: checkpoint what runs, then return.
            should_kill: True: return now, checkpoint or not.
            pruning: whether runs wait for the source's verdict at each validation.
        """
        self._store = store
        self._study = study
        self._executor = executor
        self._source = source
        self._observer = observer
        self._should_stop = should_stop
        self._should_kill = should_kill
        self._pruning = pruning
        self._runs: dict[int, Run] = {}
        self._views: dict[int, RunView] = {}
        self._points: dict[int, list[Point]] = defaultdict(list)
        self._flushed: dict[int, float] = {}
        self._unmetered: dict[int, int] = {}
        """Steps on the ledger that the run's meter does not know (its folder was deleted)."""
        self._deaths: dict[int, int] = defaultdict(int)
        self._again: list[Run] = []
        self._trouble: str | None = None
        """What stopped a run without being its fault."""
        self._lease_renewed = time.monotonic()

    def run(self) -> bool:
        """Work until done; True: everything ended, False: stopped with work left.

        Raises:
            StudyError: the surroundings stopped a run (no room on the disk, changed text); all
                runs can be continued.
        """
        stopping = False
        while True:
            if not stopping and (self._trouble is not None or self._should_stop()):
                stopping = True
                self._interrupt_all()
            while not stopping and self._executor.n_idle() and not self._should_stop():
                run = self._again.pop(0) if self._again else self._source.next_run()
                if run is None:
                    break
                self._start(run)
            self._source.meanwhile()
            if not self._executor.running():
                if self._trouble is not None:
                    raise StudyError(self._trouble)
                return not stopping and not self._should_stop()
            if self._should_kill():
                for lost in self._executor.kill():
                    self._lost_run(lost, again=False)
                return False
            for happened in self._executor.poll(POLL_SECONDS):
                if isinstance(happened, RunLost):
                    self._lost_run(happened, again=not stopping)
                else:
                    self._handle(happened)
            self._observer.tick()
            self._renew_lease()

    def _start(self, run: Run) -> None:
        config = parse(RunConfig, run.config, f"{run.kind} {run.number}")
        assert run.output_dir is not None
        self._runs[run.id] = run
        run_dir = Path(run.output_dir)
        view = RunView(
            run_id=run.id,
            kind=run.kind,
            number=run.number,
            params=run.params,
            config=config,
            planned_flops=run.planned_flops(self._study.convention),
            resumed_at_step=run.step,
        )
        self._views[run.id] = view
        metered = self._executor.steps_executed(run_dir)
        self._unmetered[run.id] = max(0, run.steps_executed - metered)
        self._store.start_attempt(run.id)
        self._flushed[run.id] = time.monotonic()
        self._executor.submit(Job(run.id, config, run_dir, wait_for_verdict=self._pruning))
        self._observer.run_started(view)

    def _interrupt_all(self) -> None:
        """Tell every run to write a checkpoint and stop."""
        for run_id in self._executor.running():
            self._executor.answer(run_id, "interrupt")

    def _handle(self, happened: RunEvent) -> None:
        run_id, event = happened.run_id, happened.event
        if isinstance(event, Progress):
            self._observer.run_progress(self._views[run_id], event)
        elif isinstance(event, Point):
            self._point(run_id, event)
        elif isinstance(event, Checkpointed):
            self._flush(run_id)
            executed = event.steps_executed + self._unmetered[run_id]
            self._store.record_executed(run_id, executed, step=event.step)
        elif isinstance(event, RunResult):
            self._result(run_id, event)

    def _point(self, run_id: int, point: Point) -> None:
        self._points[run_id].append(point)
        self._observer.run_point(self._views[run_id], point)
        run = self._runs[run_id]
        if self._pruning and point.val_loss_nats is not None and point.step < run.num_steps:
            prune = self._source.validated(run, point.step / run.num_steps, point)
            self._executor.answer(run_id, "prune" if prune else "continue")
        if time.monotonic() - self._flushed[run_id] > FLUSH_SECONDS:
            self._flush(run_id)

    def _flush(self, run_id: int) -> None:
        points = self._points.pop(run_id, [])
        if points:
            self._store.add_points(run_id, points)
        self._flushed[run_id] = time.monotonic()

    def _result(self, run_id: int, result: RunResult) -> None:
        self._flush(run_id)
        executed, step = result.steps_executed + self._unmetered[run_id], result.step
        if result.reason is not None:  # it may have ended without a readable meter
            run = self._store.run(run_id)
            executed = max(executed, run.steps_executed)
            if result.status == RunStatus.INTERRUPTED:
                step = run.step  # that of its last checkpoint
                self._trouble = f"{run.kind} {run.number}: {result.reason}"
        result = dataclasses.replace(result, step=step, steps_executed=executed)
        if result.status == RunStatus.INTERRUPTED:
            self._store.interrupt_run(run_id, step=step, steps_executed=executed)
        else:
            self._store.finish_run(run_id, result)
            self._source.finished(self._store.run(run_id), result)
        self._ended(run_id, result)

    def _lost_run(self, lost: RunLost, *, again: bool) -> None:
        """Take the run up again from its checkpoint, unless it keeps killing its workers."""
        run_id = lost.run_id
        self._flush(run_id)
        executed = lost.steps_executed + self._unmetered[run_id]
        run = self._store.run(run_id)  # its step is that of the last checkpoint
        if again:
            self._deaths[run_id] += 1
        deaths = self._deaths[run_id]
        result = RunResult(
            status=RunStatus.INTERRUPTED, step=run.step, steps_executed=executed,
            tokens=run.step * run.tokens_per_step, reason=lost.reason,
        )  # fmt: skip
        if deaths > MAX_DEATHS:
            reason = f"{lost.reason}, {deaths} times"
            result = dataclasses.replace(result, status=RunStatus.FAILED, reason=reason)
            self._store.finish_run(run_id, result)
            self._source.finished(self._store.run(run_id), result)
        else:
            self._store.interrupt_run(run_id, step=run.step, steps_executed=executed)
            if again:
                name = f"{run.kind} {run.number}"
                self._observer.message(f"{name}: {lost.reason}; continuing from its checkpoint")
                self._again.append(self._store.run(run_id))
        self._ended(run_id, result)

    def _ended(self, run_id: int, result: RunResult) -> None:
        best = self._store.best_run(self._study.id)
        best_loss = None if best is None else best.val_loss_nats
        self._observer.run_ended(self._views.pop(run_id), result, best_loss)
        for book in (self._runs, self._flushed, self._unmetered):
            book.pop(run_id, None)

    def _renew_lease(self) -> None:
        if time.monotonic() - self._lease_renewed > LEASE_SECONDS / 4:
            self._store.renew_lease(self._study.id, seconds=LEASE_SECONDS)
            self._lease_renewed = time.monotonic()


def recover(store: Store, study: Study, executor: Executor) -> list[Run]:
    """Runs that a killed dispatcher left unfinished, their meters read, ready to start again.

    A run that was `running` becomes `interrupted`; `queued` and `interrupted` ones stay so.
    """
    for run in store.runs(study.id, statuses=(RunStatus.RUNNING,)):
        assert run.output_dir is not None
        executed = max(executor.steps_executed(Path(run.output_dir)), run.steps_executed)
        store.interrupt_run(run.id, step=run.step, steps_executed=executed)
    return store.runs(study.id, statuses=(RunStatus.QUEUED, RunStatus.INTERRUPTED))
