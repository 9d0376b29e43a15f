"""The runs of a study that a scaling law can be fitted to."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from budgetsweep.config import parse
from budgetsweep.formats import known
from studies.database.tables import Run
from studies.scaling.fit_data import FitPoint
from trainer.config import RunConfig
from trainer.events import RunStatus

PriorRuns = Mapping[str, list[Run]]
"""Complete runs of prior studies by the name of their study."""

DECAYED = 0.2
"""A schedule has decayed where its last learning rate is at most so much of its peak
(*assumption*): the loss at a high rate is not the one that the law is about."""
MOST_EPOCHS = 4.0
"""Data seen more often count for less than new data (Muennighoff et al. 2023)."""

NEAR_CHANCE = 0.65
"""Of ln V, the loss of guessing: what a model that knows the frequencies of tokens and nothing else
has (7.3 of 10.8 nats with GPT-2's vocabulary, 3.1 of 5.5 with bytes)."""
CHANCE_SD = 0.5
"""Relative misfit of the law at the loss of guessing, growing with the square of the way there from
`NEAR_CHANCE` (*assumption*): what learns frequencies is on another curve than what learns language,
and a law may pass ln V where no loss can."""


def why_left_out(run: Run, config: RunConfig) -> str | None:
    """Why the end of a complete run is no data point of the fit; None: it is one."""
    if config.final_lr > DECAYED * config.max_lr or config.warmup_steps >= config.steps:
        return "ended at a high learning rate"
    if run.epochs is not None and run.epochs > MOST_EPOCHS:
        return f"saw its data more than {MOST_EPOCHS:g} times"
    return None


def near_chance_nats(loss_nats: float, n_vocab: int) -> float:
    """How far a law may be off at a loss that is hardly better than guessing; 0 at lower ones."""
    way = (loss_nats / math.log(n_vocab) - NEAR_CHANCE) / (1.0 - NEAR_CHANCE)
    return CHANCE_SD * loss_nats * max(0.0, way) ** 2


def fit_point(run: Run, config: RunConfig, n_params: float, *, known_settings: bool) -> FitPoint:
    """A complete run as a data point; `n_params` is counted as in the fit."""
    assert run.val_loss_nats is not None
    stderr = run.val_loss_stderr_nats or 0.0
    max_lr = batch_tokens = None
    if known_settings:
        max_lr, batch_tokens = config.max_lr, float(config.tokens_per_step)
        stderr = math.hypot(stderr, near_chance_nats(run.val_loss_nats, config.model.n_vocab))
    return FitPoint(
        n_params, float(run.planned_tokens), run.val_loss_nats, max_lr, batch_tokens, stderr
    )


@dataclass
class FittedRuns:
    """Finished runs of a study, and of prior ones, that a law can be fitted to."""

    runs: list[Run] = field(default_factory=list)
    configs: list[RunConfig] = field(default_factory=list)
    left_out: dict[str, list[str]] = field(default_factory=dict)
    """Names of complete runs that are no data points, by the reason."""
    n_prior: dict[str, int] = field(default_factory=dict)
    """How many are of prior studies, by their names."""

    known_settings: bool = True
    """Whether more than size, tokens and loss is known of them."""

    @classmethod
    def of(
        cls, runs: Iterable[Run], prior: PriorRuns | None = None, *, known_settings: bool = True
    ) -> FittedRuns:
        """Those among these runs; before them those of prior studies."""
        found = cls(known_settings=known_settings)
        for name, others in (prior or {}).items():
            for run in others:
                found.add(run, name)
        for run in runs:
            found.add(run)
        return found

    def add(self, run: Run, study: str = "") -> None:
        """Take in a run, with the name of its study where that is a prior one.

        One without a loss says nothing.
        """
        if run.status != RunStatus.COMPLETE or not known(run.val_loss_nats):
            return
        name = f"{run.kind} {run.number}" + (f" of {study}" if study else "")
        config = parse(RunConfig, run.config, name)
        reason = why_left_out(run, config)
        if reason is not None:
            self.left_out.setdefault(reason, []).append(name)
            return
        if study:
            self.n_prior[study] = self.n_prior.get(study, 0) + 1
        self.runs.append(run)
        self.configs.append(config)

    def of_shape(self, config: RunConfig) -> FittedRuns:
        """Those of one model."""
        same = [i for i, other in enumerate(self.configs) if other.model == config.model]
        return FittedRuns(
            [self.runs[i] for i in same],
            [self.configs[i] for i in same],
            known_settings=self.known_settings,
        )
