"""What carries runs out, as the rest of a study sees it.

An `Executor` takes runs, and its events stream back: progress, points, checkpoints with the
meter's count, the result, or the loss of the run where its process died or fell silent. It decides
nothing: what to run, what to store and what a loss means is the dispatcher's business. A `Backend`
says where the losses of a study come from and opens the executor that finds them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeAlias

from budgetsweep.constraint import Admitted, Rejected
from studies.database.tables import Run, Study
from studies.execution.messages import Job, Measured, RunEvent, RunLost, Workers
from studies.scaling.prediction import StudyFit
from studies.space.rungs import Rungs
from studies.space.search_space import SearchSpace
from trainer.config import RunConfig
from trainer.data.facts import DataFacts
from trainer.driver import Verdict
from trainer.events import DeviceInfo, Point, RunResult

if TYPE_CHECKING:
    from trainer.data.shards.progress import PrepareProgress


OnPrepare: TypeAlias = "Callable[[PrepareProgress], None] | None"
"""Who hears how far the preparation of data is."""


class Executor(Protocol):
    """Carries out runs for one dispatcher; a context manager that leaves no process behind.

    What is not abstract is the answer of runs that need no device and take no time to speak of.
    """

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    @abstractmethod
    def n_workers(self) -> int:
        """Runs at a time."""

    def device(self) -> DeviceInfo | None:
        """The device as one run may use it; None: runs need none.

        Raises:
            ConfigError: there is no such device.
            StudyError: no worker could be started.
        """
        return None

    def measure(self, config: RunConfig, seconds: float) -> Measured:
        """Training speed of one configuration while all workers train; nothing else may run."""
        return Measured(None, "nothing is trained")

    def start_all(self) -> None:
        """Bring up all workers."""
        return

    @abstractmethod
    def n_idle(self) -> int:
        """Workers that can take a run."""

    @abstractmethod
    def running(self) -> set[int]:
        """Ids of the runs in hand."""

    @abstractmethod
    def submit(self, job: Job) -> None:
        """Take a run; there must be an idle worker."""

    @abstractmethod
    def answer(self, run_id: int, verdict: Verdict) -> None:
        """Answer a validation point, or tell a run to stop. A finished run does not hear it."""

    @abstractmethod
    def poll(self, timeout: float) -> Sequence[RunEvent | RunLost]:
        """What happened in at most `timeout` seconds; lost workers are replaced."""

    def steps_executed(self, run_dir: Path) -> int:
        """Optimiser steps that the meter of a run shows that is not in hand; 0: it has none."""
        return 0

    @abstractmethod
    def kill(self) -> Sequence[RunLost]:
        """End all workers at once, unsaved work and all; the runs that were in hand."""

    @abstractmethod
    def close(self) -> None:
        """Stop all workers; runs in hand write a checkpoint if they can in time."""


class RunSource(Protocol):
    """Where runs come from and who wants to know how they end."""

    @abstractmethod
    def next_run(self) -> Run | None:
        """A queued or interrupted run to start now; None: there is none (any more)."""

    def workers_busy(self) -> None:
        """All workers have work: time for what need not delay the next run."""
        return

    def validated(self, run: Run, fraction: float, point: Point) -> bool:
        """A validation loss at a fraction of the run's budget; True: prune it."""
        return False

    def finished(self, run: Run, result: RunResult) -> None:
        """The run is complete, pruned or failed, and stored."""
        return


class SearchRequest(Protocol):
    """What a backend may refuse of a search (`studies.settings.SearchSettings`)."""

    @property
    def budget_flops(self) -> int: ...  # noqa: D102
    @property
    def convention(self) -> str: ...  # noqa: D102
    @property
    def rungs(self) -> Rungs: ...  # noqa: D102
    @property
    def sampler(self) -> str: ...  # noqa: D102
    @property
    def space(self) -> SearchSpace | None: ...  # noqa: D102
    @property
    def pruning(self) -> bool: ...  # noqa: D102
    @property
    def trials_per_gpu(self) -> int | None: ...  # noqa: D102
    @property
    def overrides(self) -> tuple[str, ...]: ...  # noqa: D102


class Backend(ABC):
    """Where the losses of a study come from. What a backend has nothing to say of has a default."""

    name: str = ""
    """Stored with the study, whose losses can be compared with those of the same name alone."""
    location: str | None = None
    """File that has to be there again; it may move."""
    source_name: str | None = None
    """What the study's data are called; None: what the user says they are."""
    notes: tuple[str, ...] = ()
    """What a user should know of the losses, a line each."""
    sizes_only: bool = False
    """A run stands for its numbers of parameters and tokens; how it was tuned is not known."""

    keeps_sampler_state: bool = True
    """Whether Optuna's record is worth its time beside ours, from which it can be made again."""

    def check(self, asked: SearchRequest) -> None:
        """Refuse a search that this backend cannot answer.

        Raises:
            ConfigError: what is asked for that cannot be had, and what to do.
        """
        return

    def check_promotion(self, overrides: Sequence[str]) -> None:
        """Refuse settings of a promotion that this backend cannot answer.

        Raises:
            ConfigError: as for `check`.
        """
        return

    def run_settings(self) -> dict[str, Any]:
        """Settings that every run has."""
        return {}

    def own_space(self, budget_flops: int, rungs: Rungs) -> SearchSpace | None:
        """The search space, where no other is possible."""
        return None

    def first_proposal(self, space: SearchSpace, budget_flops: int) -> dict[str, Any] | None:
        """The first proposal, where it is not the recipe's."""
        return None

    def refusal(self, admitted: Admitted) -> Rejected | None:
        """Why an admitted configuration cannot be run all the same."""
        return None

    def exhausted(
        self, space: SearchSpace, budget_flops: int, tried: Callable[[int], int]
    ) -> str | None:
        """Why nothing is left to try at the next trial's budget, in words; None: there is.

        `tried` counts the trials of a budget.
        """
        return None

    def regret(self, study: Study, fit: StudyFit, best: Run | None) -> str | None:
        """What choosing this trial for `fit.scale` times the budget costs, where that is known.

        `best` is the trial that measured best.
        """
        return None

    @abstractmethod
    def executor(self, workers: Workers, *, for_promotion: bool = False) -> Executor:
        """Open what carries runs out: trials, or one promotion."""

    @abstractmethod
    def fix_data(
        self, study: Study, space: SearchSpace, workers: Workers, on_prepare: OnPrepare
    ) -> tuple[Mapping[str, Any], DataFacts]:
        """Prepare a study's data, the first time; afterwards open exactly the same.

        Returns:
            `data` of the run settings, which fixes them, and what is known of them.

        Raises:
            DataError: the data cannot be had, or are not what the study began with.
        """

    @abstractmethod
    def promotion_data(
        self,
        study: Study,
        config: RunConfig,
        train_tokens: int | None,
        workers: Workers,
        on_prepare: OnPrepare,
    ) -> tuple[RunConfig, DataFacts]:
        """The study's data with as many training tokens as a promotion can use.

        Returns:
            `config` with its data fixed, and what is known of them.

        Raises:
            DataError: the data cannot be had.
        """
