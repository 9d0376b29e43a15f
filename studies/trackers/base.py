"""What a search, a promotion or a training run tells whoever watches."""

from __future__ import annotations

from dataclasses import dataclass

from budgetsweep.constraint import Rejected
from studies.space.search_space import Value
from trainer.config import RunConfig
from trainer.events import Point, Progress, RunResult


@dataclass(frozen=True)
class Session:
    """What is watched: a search, or a single run."""

    title: str
    budget_flops: int | None = None
    """Of a trial at most, in the study's convention; None: no search."""
    n_trials: int | None = None
    """Of the search in all; None: no search."""
    n_done: int = 0
    """Trials that earlier sessions finished."""


@dataclass(frozen=True)
class RunView:
    """A run as a watcher needs it."""

    run_id: int
    kind: str
    number: int | None
    """Within its kind; None: a run of no study."""
    params: dict[str, Value]
    """What was proposed."""
    config: RunConfig
    """All of its settings."""
    planned_flops: int
    """In the study's convention."""
    resumed_at_step: int = 0
    """0: a fresh run."""

    @property
    def name(self) -> str:
        """What a watcher calls it."""
        return self.config.output_dir if self.number is None else f"{self.kind} {self.number}"


class Observer:
    """Does nothing; subclasses override what they track."""

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

    def close(self) -> None:
        """Nothing more comes."""
