"""What a study's records say: ranking, gap, noise, cost. Pure functions of `StudyData`."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from functools import cached_property
from typing import Any

import numpy as np

from budgetsweep.config import parse
from budgetsweep.formats import known
from reports.read import StudyData
from studies.database.ledger import Spending
from studies.database.run_kind import RunKind
from studies.database.tables import Rejection, Run, Study
from studies.diagnosis.curves import Curve
from studies.diagnosis.study_runs import diagnose_runs
from studies.diagnosis.verdicts import Diagnosis
from studies.space.search_space import Parameter
from trainer.config import RunConfig
from trainer.events import RunStatus

SEED_NOISE_NATS = 0.02
"""Gaps under this are called ties. No study runs a configuration twice; in published runs near 1e15
FLOPs seeds differ by 0.01 nats and more (*assumption* for other budgets)."""

BEST_FEW = 5


class Facts:
    """A study's records, sorted and counted."""

    def __init__(self, data: StudyData) -> None:
        self.data = data
        self.study: Study = data.study
        self.rejections: list[Rejection] = data.rejections
        self.trials = sorted(
            (r for r in data.runs if r.kind == RunKind.TRIAL), key=lambda r: r.number
        )
        self.promotions = sorted(
            (r for r in data.runs if r.kind != RunKind.TRIAL), key=lambda r: r.id
        )
        """Finalists of the search among them."""

    @cached_property
    def ranked(self) -> list[Run]:
        """Complete trials of the whole budget with a finite validation loss, best first."""
        return sorted(
            (r for r in self.complete_trials if r.has_whole_budget),
            key=lambda r: (final_loss(r), r.number),
        )

    @cached_property
    def complete_trials(self) -> list[Run]:
        """Complete trials of all budget levels with a finite validation loss, by number."""
        return [r for r in self.trials if r.status == RunStatus.COMPLETE and known(r.val_loss_nats)]

    @property
    def best(self) -> Run | None:
        """The complete trial of the lowest validation loss."""
        return self.ranked[0] if self.ranked else None

    @property
    def first(self) -> Run | None:
        """The first proposal that was admitted: the baseline of the search."""
        return self.trials[0] if self.trials else None

    @property
    def promoted(self) -> Run | None:
        """The complete promotion of the lowest validation loss."""
        complete = [
            r for r in self.promotions if r.status == RunStatus.COMPLETE and known(r.val_loss_nats)
        ]
        return min(complete, key=final_loss, default=None)

    @property
    def n_proposals(self) -> int:
        """Proposals made: admitted and rejected."""
        return len(self.trials) + len(self.rejections)

    @cached_property
    def parameters(self) -> dict[str, Parameter]:
        """The search space by name."""
        entries = self.study.space["parameters"].items()
        return {name: Parameter.model_validate(entry) for name, entry in entries}

    @cached_property
    def varied(self) -> list[str]:
        """Names whose proposed values differ between trials, in the order of the space."""
        seen: dict[str, set[str]] = defaultdict(set)
        for run in self.trials:
            for name, value in run.params.items():
                seen[name].add(repr(value))
        order = list(self.parameters) + [name for name in seen if name not in self.parameters]
        return [name for name in order if len(seen.get(name, ())) > 1]

    def trial_of(self, promotion: Run) -> Run:
        """The trial that a promotion came from."""
        return next(run for run in self.trials if run.id == promotion.parent_run_id)

    def curve(self, run: Run) -> Curve | None:
        """A run's learning curves."""
        return self.data.curves.get(run.id)

    def has_learning_rate(self, run: Run) -> bool:
        """Whether a run's learning rate was recorded.

        Where it was not, its configuration stands for a size and a number of tokens only.
        """
        curve = self.curve(run)
        return curve is not None and bool(np.isfinite(curve.lr).any())

    @property
    def law(self) -> dict[str, Any] | None:
        """The scaling law that was fitted last, with its points; None: there is none."""
        fit = self.data.fit
        return None if fit is None or fit.refusal is not None else fit.record

    @cached_property
    def diagnoses(self) -> dict[int, Diagnosis]:
        """What the curves say, by run id; of complete runs and of those that diverged."""
        return diagnose_runs(self.data.runs, self.study, self.data.curves)

    def spending(self, runs: Iterable[Run]) -> Spending:
        """What the ledger says of `runs` together."""
        return sum((self.data.spending[run.id] for run in runs), Spending())

    @property
    def rival(self) -> Run | None:
        """The second best trial; no two have one configuration."""
        return self.ranked[1] if self.ranked[1:] else None

    @cached_property
    def wall_seconds(self) -> float | None:
        """From the first start to the last finish; pauses between sessions included."""
        starts = [r.started_utc for r in self.data.runs if r.started_utc]
        ends = [r.finished_utc for r in self.data.runs if r.finished_utc]
        return (max(ends) - min(starts)).total_seconds() if starts and ends else None


def final_loss(run: Run) -> float:
    """The validation loss of a run that has one, nats."""
    assert run.val_loss_nats is not None
    return run.val_loss_nats


def tokens_per_param(run: Run) -> float:
    """Training tokens per parameter (embeddings counted)."""
    return run.planned_tokens / run.n_params


def has_sampled_softmax(run: Run) -> bool:
    """Whether training computed the logits of a part of the vocabulary only.

    Then most parameters are not active, and rules of tokens per parameter do not hold.
    """
    return run.config.get("head_samples") is not None


def run_config(run: Run) -> RunConfig:
    """The run's configuration."""
    return parse(RunConfig, run.config, f"{run.kind} {run.number}")


def as_number(value: Any) -> float | None:
    """The value where it is a finite number (truth values are not)."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None
