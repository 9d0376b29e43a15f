"""Simulated and replayed runs, in this process: they cost less than handing them to another."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any, Self

from studies.execution.worker import RunEvent
from studies.simulation.replay import ReplayTable, replay_run
from studies.simulation.simulated_run import simulate_run
from trainer.branches import WHOLE, Lineage
from trainer.config import RunConfig
from trainer.events import Command, Point, Run, RunResult


class _Slot:
    """One run in hand."""

    def __init__(self, run: Run, num_steps: int, wait_for_verdict: bool) -> None:
        self.run, self.num_steps, self.wait_for_verdict = run, num_steps, wait_for_verdict
        self.command: Command | None = None
        self.waiting = False

    def advance(self) -> list[Any]:
        """Its events up to the end, or up to a question (pruning)."""
        events: list[Any] = []
        while not self.waiting:
            command, self.command = self.command, None
            try:
                event = self.run.send(command)
            except StopIteration as stop:
                return [*events, stop.value]
            events.append(event)
            self.waiting = (
                self.wait_for_verdict
                and isinstance(event, Point)
                and event.val_loss_nats is not None
                and event.step < self.num_steps
            )
        return events


class SimulatedPool:
    """An executor of runs that nobody trains; no process, no torch.

    Several workers are as many runs at a time, in turns.
    """

    def __init__(
        self, n_workers: int, *, artefacts: bool = False, table: ReplayTable | None = None
    ) -> None:
        """Open a pool.

        Args:
            n_workers: runs at a time.
            artefacts: whether runs write config.yaml, curve.csv and eval.json (a promotion does).
            table: whose runs stand for replayed ones; None: runs are simulated.
        """
        self._n_workers, self._artefacts, self._table = n_workers, artefacts, table
        self._slots: dict[int, _Slot] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def device(self) -> None:
        """There is none: a simulated run fits everywhere."""

    def device_per_worker(self) -> None:
        """There is none."""

    def start_all(self) -> None:
        """Nothing is to be started."""

    def n_idle(self) -> int:
        """Workers that can take a run."""
        return self._n_workers - len(self._slots)

    def running(self) -> set[int]:
        """Runs in hand."""
        return set(self._slots)

    def submit(
        self,
        run_id: int,
        config: RunConfig,
        run_dir: Path,
        *,
        wait_for_verdict: bool,
        lineage: Lineage = WHOLE,
    ) -> None:
        """Take a run; there must be an idle worker."""
        folder = run_dir if self._artefacts else None
        if self._table is None:
            run = simulate_run(config, folder, lineage.inherited_steps)
        else:
            run = replay_run(config, self._table, folder)
        self._slots[run_id] = _Slot(run, config.steps, wait_for_verdict)

    def command(self, run_id: int, command: Command) -> None:
        """Tell a run to stop. A finished run does not hear it."""
        if run_id in self._slots:
            self._slots[run_id].command = command
            self._slots[run_id].waiting = False

    def go_on(self, run_id: int) -> None:
        """Answer a validation point: continue."""
        if run_id in self._slots:
            self._slots[run_id].waiting = False

    def interrupt_all(self) -> None:
        """Tell every run to stop for now."""
        for run_id in self._slots:
            self.command(run_id, "interrupt")

    def poll(self, timeout: float) -> list[RunEvent]:
        """What happened; never waits."""
        del timeout
        happened: list[RunEvent] = []
        for run_id, slot in list(self._slots.items()):
            events = slot.advance()
            happened += [RunEvent(run_id, event) for event in events]
            if events and isinstance(events[-1], RunResult):
                del self._slots[run_id]
        return happened

    def close(self) -> None:
        """Let go of the runs in hand; they begin anew another time."""
        for slot in self._slots.values():
            slot.run.close()
        self._slots.clear()

    def kill(self) -> None:
        """The same: there is nothing to wait for."""
        self.close()
