"""Drives the generator of a training run: events out, verdicts in, the result last. No torch."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Literal, TypeAlias

from trainer.events import Checkpointed, Command, Point, Progress, RunResult

Event: TypeAlias = Progress | Point | Checkpointed
RunEvents: TypeAlias = Generator[Event, Command | None, RunResult]
Verdict: TypeAlias = Command | Literal["continue"]


class RunDriver:
    """One run in hand."""

    def __init__(self, run: RunEvents, waits_at: Callable[[Event], bool] | None = None) -> None:
        """Take up a run (`trainer.loop.train_run`), which has not begun.

        `waits_at`: whether the run stands still after an event until there is a verdict.
        """
        self._run, self._waits_at = run, waits_at
        self._command: Command | None = None
        self.waiting = False
        """Whether a verdict has to come first."""

    def advance(self) -> Event | RunResult:
        """Run up to the next event; a `RunResult` is the last one."""
        command, self._command = self._command, None
        try:
            event = self._run.send(command)
        except StopIteration as stop:
            result: RunResult = stop.value
            return result
        self.waiting = self._waits_at is not None and self._waits_at(event)
        return event

    def answer(self, verdict: Verdict) -> None:
        """A verdict on the last event, or a command that nobody waits for."""
        self.waiting = False
        if verdict != "continue":
            self._command = verdict

    @property
    def is_commanded(self) -> bool:
        """Whether the run will obey a command next."""
        return self._command is not None

    def close(self) -> None:
        """Let go of the run where it stands."""
        self._run.close()


def drive(run: RunEvents, answer: Callable[[Event], Command | None]) -> RunResult:
    """Take a run to its end; what `answer` says to an event is sent back to the run."""
    driver = RunDriver(run)
    while not isinstance(event := driver.advance(), RunResult):
        driver.answer(answer(event) or "continue")
    return event
