"""What a search or promotion tells whoever watches. The command line draws it; tests record it."""

from __future__ import annotations

from dataclasses import dataclass

from budgetsweep.constraint import Rejected
from studies.database.run_kind import RunKind
from studies.space.search_space import Value
from trainer.events import Point, Progress, RunResult


@dataclass(frozen=True)
class RunView:
    """A run as a watcher needs it."""

    run_id: int
    kind: RunKind
    number: int
    params: dict[str, Value]
    n_params: int
    num_steps: int
    planned_tokens: int
    planned_flops: int
    """In the study's convention."""
    resumed_at_step: int
    """0 for a fresh run."""

    @property
    def name(self) -> str:
        """What a watcher calls it."""
        return f"{self.kind} {self.number}"


class Observer:
    """Does nothing; subclasses override what they show."""

    def message(self, text: str) -> None:
        """A line worth reading."""

    def run_started(self, run: RunView) -> None:
        """A worker took a run up."""

    def run_progress(self, run: RunView, progress: Progress) -> None:
        """Where a run is, about once a second."""

    def run_point(self, run: RunView, point: Point) -> None:
        """A point of a run's curves."""

    def run_ended(self, run: RunView, result: RunResult, best_val_loss_nats: float | None) -> None:
        """A run is complete, pruned, failed or interrupted."""

    def rejected(self, number: int, rejection: Rejected) -> None:
        """A proposal was refused."""

    def tick(self) -> None:
        """Called several times a second."""
