"""What dispatcher and executor say to each other about runs: plain, picklable data, no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from trainer.config import RunConfig
from trainer.driver import Event
from trainer.events import Point, RunResult


@dataclass(frozen=True)
class Job:
    """A run to carry out."""

    run_id: int
    config: RunConfig
    run_dir: Path
    wait_for_verdict: bool
    """Whether the run waits after each validation for a verdict (pruning)."""

    def waits_at(self, event: Event) -> bool:
        """Whether the run waits for a verdict on this event."""
        return (
            self.wait_for_verdict
            and isinstance(event, Point)
            and event.val_loss_nats is not None
            and event.step < self.config.steps
        )


@dataclass(frozen=True)
class RunEvent:
    """Something happened in a run, `RunResult` last.

    A result that is interrupted with a reason was stopped by its surroundings (no room on the disk,
    changed data, a folder in use), which would stop other runs too.
    """

    run_id: int
    event: Event | RunResult


@dataclass(frozen=True)
class RunLost:
    """The process of a run died or fell silent; the run can go on from its last checkpoint."""

    run_id: int
    steps_executed: int
    """Optimiser steps that the run's meter shows, all attempts together."""
    reason: str


@dataclass(frozen=True)
class Measured:
    """Training speed of a configuration on an executor's device."""

    tokens_per_second: float | None
    """None: it could not be measured, for `reason`."""
    reason: str | None = None


@dataclass(frozen=True)
class Workers:
    """What a user asks of an executor."""

    count: int = 1
    """Runs at a time, unless `per_gpu` says it."""
    per_gpu: int | None = None
    """Runs at a time on each GPU that `device` allows."""
    device: str = "auto"
    threads: int | None = None
    """Arithmetic threads of a worker; None: the cores divided among the workers."""
    cache_dir: Path | None = None
    """Where prepared tokens lie; None: the default."""
