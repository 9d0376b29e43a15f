"""The runs of a study that a law of the loss can be fitted to, and the fit."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from budgetsweep.config import parse
from studies.tables import Run
from trainer.config import RunConfig

if TYPE_CHECKING:
    from studies.effects import Effects
    from studies.scaling.observations import Observation
    from studies.scaling.result import ScalingFit

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


def kind_of_point(run: Run) -> str:
    """What a point of the law is: where a whole schedule ended, or a branch of another run's."""
    return "cooldown branch" if run.kind == "branch" else "end of a decayed schedule"


def observation(run: Run, config: RunConfig) -> Observation:
    """A finished run as the fit sees it: N are the parameters that a token is charged for."""
    from studies.scaling.observations import Observation

    assert run.val_loss_nats is not None
    return Observation(
        n_params=float(config.n_charged_params),
        tokens=float(run.planned_tokens),
        loss_nats=run.val_loss_nats,
        max_lr=config.max_lr,
        batch_tokens=float(config.tokens_per_step),
        stderr_nats=run.val_loss_stderr_nats or 0.0,
    )


@dataclass
class Points:
    """Finished runs of a study that a law can be fitted to."""

    runs: list[Run] = field(default_factory=list)
    configs: list[RunConfig] = field(default_factory=list)
    observations: list[Observation] = field(default_factory=list)
    left_out: dict[str, list[str]] = field(default_factory=dict)
    """Names of complete runs that are no points, by the reason."""

    def add(self, run: Run) -> None:
        """Take in a finished run; one without a loss says nothing."""
        if run.status != "complete" or run.val_loss_nats is None:
            return
        config = parse(RunConfig, run.config, f"{run.kind} {run.number}")
        reason = why_no_point(run, config)
        if reason is not None:
            self.left_out.setdefault(reason, []).append(f"{run.kind} {run.number}")
            return
        self.runs.append(run)
        self.configs.append(config)
        self.observations.append(observation(run, config))

    @classmethod
    def of(cls, runs: Iterable[Run]) -> Points:
        """The points of these runs."""
        points = cls()
        for run in runs:
            points.add(run)
        return points

    def first(self, n: int) -> Points:
        """The first so many of them."""
        return Points(self.runs[:n], self.configs[:n], self.observations[:n])

    def of_shape(self, config: RunConfig) -> Points:
        """The points of one model."""
        same = [i for i, other in enumerate(self.configs) if other.model == config.model]
        return Points(
            [self.runs[i] for i in same],
            [self.configs[i] for i in same],
            [self.observations[i] for i in same],
        )


def fit_points(points: Points, *, must_reach: bool = True) -> tuple[ScalingFit, Effects]:
    """The law of some runs and the effects of what it does not know, fitted by turns.

    Raises:
        FitRefused: the runs do not carry a law.
    """
    import numpy as np

    from studies.effects import fit_effects
    from studies.scaling.fit import fit
    from studies.scaling.observations import Points as Logs
    from studies.scaling.result import undertrained_sd

    law = fit(points.observations, must_reach=False)
    few = undertrained_sd(Logs.of(points.observations))
    for last in (False, True):
        residuals, spread = [], []
        for one, off in zip(points.observations, few, strict=True):
            expected = law.losses(
                one.n_params, one.tokens, max_lr=one.max_lr, batch_tokens=one.batch_tokens
            )
            residuals.append(one.loss_nats - float(expected[0]))
            spread.append(math.hypot(one.loss_nats * math.hypot(law.noise, off), one.stderr_nats))
        effects = fit_effects(points.configs, np.array(residuals), np.array(spread))
        if not last:
            law = fit(freed(points, effects), must_reach=must_reach)
    return law, effects


def freed(points: Points, effects: Effects) -> list[Observation]:
    """The points without what their other settings changed of their losses."""
    return [
        dataclasses.replace(one, loss_nats=one.loss_nats - effects.of(config)[0])
        for config, one in zip(points.configs, points.observations, strict=True)
    ]
