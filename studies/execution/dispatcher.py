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
from dataclasses import dataclass
from pathlib import Path

from budgetsweep.config import parse
from budgetsweep.errors import StudyError
from studies.database.leases import LEASE_SECONDS
from studies.database.store import Store
from studies.database.tables import Run, Study
from studies.execution.base import Executor, RunSource
from studies.execution.messages import Job, RunEvent, RunLost
from studies.trackers.base import Observer, RunView
from trainer.config import RunConfig
from trainer.events import Checkpointed, Point, Progress, RunResult, RunStatus

POLL_SECONDS = 0.2
FLUSH_SECONDS = 2.0
"""Points wait so long for company: one commit holds many."""
MAX_DEATHS = 2
"""A run whose worker died more often than this is failed: it would kill the next one too."""


@dataclass
class Dispatcher:
    """Runs what a source gives until it gives no more or somebody says stop."""

    store: Store
    """Of the study, whose lease is held."""
    study: Study
    executor: Executor
    """Started."""
    source: RunSource
    observer: Observer
    should_stop: Callable[[], bool]
    """Asked often; True: checkpoint what runs, then return."""
    should_kill: Callable[[], bool]
    """True: return now, checkpoint or not."""
    pruning: bool = False
    """Whether runs wait for the source's verdict at each validation."""

    def __post_init__(self) -> None:
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
            if not stopping and (self._trouble is not None or self.should_stop()):
                stopping = True
                for run_id in self.executor.running():
                    self.executor.answer(run_id, "interrupt")
            while not stopping and self.executor.n_idle() and not self.should_stop():
                run = self._again.pop(0) if self._again else self.source.next_run()
                if run is None:
                    break
                self._start(run)
            self.source.workers_busy()
            if not self.executor.running():
                if self._trouble is not None:
                    raise StudyError(self._trouble)
                return not stopping and not self.should_stop()
            if self.should_kill():
                for lost in self.executor.kill():
                    self._lost_run(lost, again=False)
                return False
            for happened in self.executor.poll(POLL_SECONDS):
                if isinstance(happened, RunLost):
                    self._lost_run(happened, again=not stopping)
                else:
                    self._handle(happened)
            self.observer.tick()
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
            planned_flops=run.planned_flops(self.study.convention),
            resumed_at_step=run.step,
        )
        self._views[run.id] = view
        metered = self.executor.steps_executed(run_dir)
        self._unmetered[run.id] = max(0, run.steps_executed - metered)
        self.store.start_attempt(run.id)
        self._flushed[run.id] = time.monotonic()
        self.executor.submit(Job(run.id, config, run_dir, wait_for_verdict=self.pruning))
        self.observer.run_started(view)

    def _handle(self, happened: RunEvent) -> None:
        run_id, event = happened.run_id, happened.event
        if isinstance(event, Progress):
            self.observer.run_progress(self._views[run_id], event)
        elif isinstance(event, Point):
            self._point(run_id, event)
        elif isinstance(event, Checkpointed):
            self._flush(run_id)
            executed = event.steps_executed + self._unmetered[run_id]
            self.store.record_executed(run_id, executed, step=event.step)
        elif isinstance(event, RunResult):
            self._result(run_id, event)

    def _point(self, run_id: int, point: Point) -> None:
        self._points[run_id].append(point)
        self.observer.run_point(self._views[run_id], point)
        run = self._runs[run_id]
        if self.pruning and point.val_loss_nats is not None and point.step < run.num_steps:
            prune = self.source.validated(run, point.step / run.num_steps, point)
            self.executor.answer(run_id, "prune" if prune else "continue")
        if time.monotonic() - self._flushed[run_id] > FLUSH_SECONDS:
            self._flush(run_id)

    def _flush(self, run_id: int) -> None:
        points = self._points.pop(run_id, [])
        if points:
            self.store.add_points(run_id, points)
        self._flushed[run_id] = time.monotonic()

    def _result(self, run_id: int, result: RunResult) -> None:
        self._flush(run_id)
        executed, step = result.steps_executed + self._unmetered[run_id], result.step
        if result.reason is not None:  # it may have ended without a readable meter
            run = self.store.run(run_id)
            executed = max(executed, run.steps_executed)
            if result.status == RunStatus.INTERRUPTED:
                step = run.step  # that of its last checkpoint
                self._trouble = f"{run.kind} {run.number}: {result.reason}"
        self._ended(run_id, dataclasses.replace(result, step=step, steps_executed=executed))

    def _lost_run(self, lost: RunLost, *, again: bool) -> None:
        """Take the run up again from its checkpoint, unless it keeps killing its workers."""
        run_id = lost.run_id
        self._flush(run_id)
        executed = lost.steps_executed + self._unmetered[run_id]
        run = self.store.run(run_id)  # its step is that of the last checkpoint
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
        self._ended(run_id, result)
        if again and deaths <= MAX_DEATHS:
            name = f"{run.kind} {run.number}"
            self.observer.message(f"{name}: {lost.reason}; continuing from its checkpoint")
            self._again.append(self.store.run(run_id))

    def _ended(self, run_id: int, result: RunResult) -> None:
        """Store how a run ended or was interrupted, and say so."""
        if result.status == RunStatus.INTERRUPTED:
            self.store.interrupt_run(run_id, step=result.step, steps_executed=result.steps_executed)
        else:
            self.store.finish_run(run_id, result)
            self.source.finished(self.store.run(run_id), result)
        best = self.store.best_run(self.study.id)
        best_loss = None if best is None else best.val_loss_nats
        self.observer.run_ended(self._views.pop(run_id), result, best_loss)
        for book in (self._runs, self._flushed, self._unmetered):
            book.pop(run_id, None)

    def _renew_lease(self) -> None:
        if time.monotonic() - self._lease_renewed > LEASE_SECONDS / 4:
            self.store.renew_lease(self.study.id)
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
