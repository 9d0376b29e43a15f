"""What a study's records say: ranking, gap, noise, cost. Pure functions of `StudyData`."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from pydantic import ValidationError

from budgetsweep.formats import known
from model.flops import Convention
from reports.read import StudyData
from studies.database.ledger import Amount, of_steps
from studies.database.run_kind import RunKind
from studies.database.tables import Rejection, Run, Study
from studies.diagnosis import Diagnosis
from studies.diagnosis.curves import Curve
from studies.diagnosis.study_runs import diagnose_runs
from studies.space.search_space import Parameter
from trainer.config import RunConfig
from trainer.events import RunStatus

SEED_NOISE_NATS = 0.02
"""Gaps under this are called ties while the noise between seeds is unknown: seeds differ by 0.01
nats and more in published runs near 1e15 FLOPs (*assumption* for other budgets)."""

BEST_FEW = 5


@dataclass(frozen=True)
class SeedNoise:
    """Spread of the loss between runs that differ in nothing but their seed."""

    sd_nats: float
    """Pooled standard deviation."""
    n_configs: int
    n_runs: int


@dataclass(frozen=True)
class Costs:
    """What a set of runs cost."""

    planned: Amount | None
    """None: the ledger has no entry."""
    spent: Amount | None
    recomputed: Amount
    """Part of `spent` that was recomputed after a kill."""
    train_seconds: float | None
    eval_seconds: float | None


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
        """The search space by name; entries that this version cannot read are left out."""
        found: dict[str, Parameter] = {}
        for name, entry in self.study.space.get("parameters", {}).items():
            try:
                found[name] = Parameter.model_validate(entry)
            except ValidationError:
                continue
        return found

    @cached_property
    def varied(self) -> list[str]:
        """Names whose proposed values differ between trials, in the order of the space."""
        seen: dict[str, set[str]] = defaultdict(set)
        for run in self.trials:
            for name, value in run.params.items():
                seen[name].add(repr(value))
        order = list(self.parameters) + [name for name in seen if name not in self.parameters]
        return [name for name in order if len(seen.get(name, ())) > 1]

    @cached_property
    def _trial_by_id(self) -> dict[int, Run]:
        return {run.id: run for run in self.trials}

    def trial_of(self, promotion: Run) -> Run | None:
        """The trial that a promotion came from; None for a trial."""
        parent = promotion.parent_run_id
        return None if parent is None else self._trial_by_id.get(parent)

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

    def costs(self, runs: Iterable[Run]) -> Costs:
        """Sums of the ledger and the clocks over `runs`."""
        runs = list(runs)
        entries = [self.data.spending[r.id] for r in runs if r.id in self.data.spending]
        recomputed = Amount()
        for run in runs:
            if run.steps_recomputed:
                planned = [run.planned_flops(name) for name in Convention]
                recomputed += of_steps(
                    run.steps_recomputed, run.num_steps, run.tokens_per_step, planned
                )
        return Costs(
            planned=sum((e.planned for e in entries), Amount()) if entries else None,
            spent=sum((e.spent for e in entries), Amount()) if entries else None,
            recomputed=recomputed,
            train_seconds=_sum_known(r.train_seconds for r in runs),
            eval_seconds=_sum_known(r.eval_seconds for r in runs),
        )

    @cached_property
    def seed_noise(self) -> SeedNoise | None:
        """Pooled spread between equal configurations with different seeds; None: none repeated."""
        groups: dict[str, dict[int, float]] = defaultdict(dict)
        for run in self.ranked:
            groups[run.config_hash].setdefault(run.seed, final_loss(run))
        repeated = [list(losses.values()) for losses in groups.values() if len(losses) > 1]
        if not repeated:
            return None
        squares, freedom = 0.0, 0
        for losses in repeated:
            mean = math.fsum(losses) / len(losses)
            squares += math.fsum((value - mean) ** 2 for value in losses)
            freedom += len(losses) - 1
        return SeedNoise(
            math.sqrt(squares / freedom), len(repeated), sum(len(losses) for losses in repeated)
        )

    @cached_property
    def rival(self) -> Run | None:
        """The best trial of another configuration than the best one (a repeat is no rival)."""
        if self.best is None:
            return None
        return next((r for r in self.ranked if r.config_hash != self.ranked[0].config_hash), None)

    @property
    def gap_nats(self) -> float | None:
        """Distance from the best trial to its rival."""
        if self.best is None or self.rival is None:
            return None
        return final_loss(self.rival) - final_loss(self.best)

    @property
    def gap_error_bound_nats(self) -> float | None:
        """Standard error of `gap_nats` if the two had been measured on independent samples.

        They saw the same tokens, so the true error is smaller; by how much is not stored.
        """
        if self.best is None or self.rival is None:
            return None
        one, other = self.best.val_loss_stderr_nats, self.rival.val_loss_stderr_nats
        return math.hypot(one, other) if known(one) and known(other) else None

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


def run_config(run: Run) -> RunConfig | None:
    """The run's configuration; None when this version cannot read it."""
    try:
        return RunConfig.model_validate(run.config)
    except ValidationError:
        return None


def as_number(value: Any) -> float | None:
    """The value where it is a finite number (truth values are not)."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def _sum_known(values: Iterable[float | None]) -> float | None:
    found = [value for value in values if known(value)]
    return math.fsum(found) if found else None
