"""The runs of a study that a law of the loss can be fitted to."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from budgetsweep.config import parse
from studies.database.tables import Run
from trainer.config import RunConfig
from trainer.events import RunStatus

if TYPE_CHECKING:
    from studies.scaling.fit_data import Observation

DECAYED = 0.2
"""A schedule has decayed where its last learning rate is at most so much of its peak
(*assumption*): the loss at a high rate is not the one that the law is about."""
MOST_EPOCHS = 4.0
"""Text seen more often counts for less than new text (Muennighoff et al. 2023)."""


def why_no_point(run: Run, config: RunConfig) -> str | None:
    """Why the end of a complete run is no point for the law; None: it is one."""
    if config.final_lr > DECAYED * config.max_lr or config.warmup_steps >= config.steps:
        return "ended at a high learning rate"
    if run.epochs is not None and run.epochs > MOST_EPOCHS:
        return f"saw its text more than {MOST_EPOCHS:g} times"
    return None


NEAR_CHANCE = 0.65
"""Of ln V, the loss of guessing: what a model that knows the frequencies of tokens and nothing else
has (7.3 of 10.8 nats with GPT-2's vocabulary, 3.1 of 5.5 with bytes)."""
CHANCE_SD = 0.5
"""Relative misfit of the law at the loss of guessing, growing with the square of the way there from
`NEAR_CHANCE` (*assumption*): what learns frequencies is on another curve than what learns text, and
a law may pass ln V where no loss can."""


def near_chance_nats(loss_nats: float, n_vocab: int) -> float:
    """How far a law may be off at a loss that is hardly better than guessing; 0 at lower ones."""
    way = (loss_nats / math.log(n_vocab) - NEAR_CHANCE) / (1.0 - NEAR_CHANCE)
    return CHANCE_SD * loss_nats * max(0.0, way) ** 2


def observation(run: Run, config: RunConfig, n_params: float) -> Observation:
    """A finished run as the fit sees it.

    Args:
        run: complete, with a loss.
        config: its configuration.
        n_params: its size, counted as in the fit.
    """
    from studies.scaling.fit_data import Observation

    assert run.val_loss_nats is not None
    told = config.trainer != "replayed"  # of a table's run nobody knows tuning or vocabulary
    doubt = near_chance_nats(run.val_loss_nats, config.model.n_vocab) if told else 0.0
    return Observation(
        n_params=n_params,
        tokens=float(run.planned_tokens),
        loss_nats=run.val_loss_nats,
        max_lr=config.max_lr if told else None,
        batch_tokens=float(config.tokens_per_step) if told else None,
        stderr_nats=math.hypot(run.val_loss_stderr_nats or 0.0, doubt),
    )


@dataclass
class Points:
    """Finished runs of a study that a law can be fitted to."""

    runs: list[Run] = field(default_factory=list)
    configs: list[RunConfig] = field(default_factory=list)
    left_out: dict[str, list[str]] = field(default_factory=dict)
    """Names of complete runs that are no points, by the reason."""
    earlier: dict[str, int] = field(default_factory=dict)
    """How many points are runs of other studies, by their names."""

    def add(self, run: Run, study: str = "") -> None:
        """Take in a finished run, with the name of its study where that is an earlier one.

        One without a loss says nothing.
        """
        if run.status != RunStatus.COMPLETE or run.val_loss_nats is None:
            return
        name = f"{run.kind} {run.number}" + (f" of {study}" if study else "")
        config = parse(RunConfig, run.config, name)
        reason = why_no_point(run, config)
        if reason is not None:
            self.left_out.setdefault(reason, []).append(name)
            return
        if study:
            self.earlier[study] = self.earlier.get(study, 0) + 1
        self.runs.append(run)
        self.configs.append(config)

    @classmethod
    def of(cls, runs: Iterable[Run], earlier: Mapping[str, Iterable[Run]] | None = None) -> Points:
        """The points of these runs; before them those of earlier studies, by their names."""
        points = cls()
        for name, others in (earlier or {}).items():
            for run in others:
                points.add(run, name)
        for run in runs:
            points.add(run)
        return points

    def first(self, n: int) -> Points:
        """The first so many of them."""
        return Points(self.runs[:n], self.configs[:n])

    def of_shape(self, config: RunConfig) -> Points:
        """The points of one model."""
        same = [i for i, other in enumerate(self.configs) if other.model == config.model]
        return Points([self.runs[i] for i in same], [self.configs[i] for i in same])
