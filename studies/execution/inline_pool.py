"""Runs in this process, in turns: for runs that cost less than handing them to another."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from studies.execution.base import Executor
from studies.execution.messages import Job, RunEvent, RunLost
from trainer.config import RunConfig
from trainer.driver import RunDriver, RunEvents, Verdict
from trainer.events import RunResult


class InlinePool(Executor):
    """An executor without a process, a device and torch. Results say what was executed."""

    def __init__(self, n_workers: int, open_run: Callable[[RunConfig, Path], RunEvents]) -> None:
        """`open_run` makes the generator of a run's events, from its configuration and folder."""
        self._n_workers, self._open_run = n_workers, open_run
        self._drivers: dict[int, RunDriver] = {}

    @property
    def n_workers(self) -> int:
        """Runs at a time."""
        return self._n_workers

    def n_idle(self) -> int:
        """Workers that can take a run."""
        return self._n_workers - len(self._drivers)

    def running(self) -> set[int]:
        """Ids of the runs in hand."""
        return set(self._drivers)

    def submit(self, job: Job) -> None:
        """Take a run; there must be an idle worker."""
        run = self._open_run(job.config, job.run_dir)
        self._drivers[job.run_id] = RunDriver(run, job.waits_at)

    def answer(self, run_id: int, verdict: Verdict) -> None:
        """Answer a validation point, or tell a run to stop. A finished run does not hear it."""
        if run_id in self._drivers:
            self._drivers[run_id].answer(verdict)

    def poll(self, timeout: float) -> list[RunEvent]:
        """What happened; never waits."""
        del timeout
        happened: list[RunEvent] = []
        for run_id, driver in list(self._drivers.items()):
            while run_id in self._drivers and not driver.waiting:
                event = driver.advance()
                happened.append(RunEvent(run_id, event))
                if isinstance(event, RunResult):
                    del self._drivers[run_id]
        return happened

    def kill(self) -> list[RunLost]:
        """The runs in hand begin anew another time."""
        lost = [RunLost(run_id, 0, "stopped at once") for run_id in self._drivers]
        self.close()
        return lost

    def close(self) -> None:
        """Let go of the runs in hand; they begin anew another time."""
        for driver in self._drivers.values():
            driver.close()
        self._drivers.clear()
