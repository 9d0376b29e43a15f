"""What a study's runs say of a larger budget: its law, and which trial to promote.

Two answers belong together: the trial that measured best at the search's budget, and the one whose
shape is predicted to be best at the larger one. They often differ (docs/scaling.md), so both are
kept with what each costs in the other's place.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from budgetsweep.config import parse
from budgetsweep.constraint import Limits, affordable_steps
from budgetsweep.errors import ConfigError, FitRefused
from studies.points import Points, fit_points, freed, kind_of_point
from studies.rescaling import promoted_config
from studies.tables import Run, Study
from trainer.config import RunConfig

if TYPE_CHECKING:
    from studies.effects import Effects
    from studies.scaling.result import Prediction, ScalingFit

LEVEL = 0.8
Z_LEVEL = 1.2816
"""Of a normal distribution, half of that interval."""
DRAWS = 400
RATE_REACH = 2.0
"""*Assumption*: as far as `--check-lr` looks."""


@dataclass(frozen=True)
class Candidate:
    """A trial that could be promoted, and what its shape would reach."""

    run_id: int
    number: int
    n_params: int
    tokens: int
    """Training tokens of the promotion."""
    measured_nats: float | None
    """Loss at the search's budget; None: the trial was on another rung."""
    at_budget_nats: float
    """The same, or predicted where it was not measured."""
    loss_nats: float
    low_nats: float
    high_nats: float
    flops_ratio: float
    """FLOPs of the promotion over those of the largest run fitted."""


@dataclass(frozen=True)
class Choice:
    """The two answers, and what choosing one costs in the other's place."""

    measured: int
    """Number of the trial with the lowest loss at the search's budget."""
    predicted: int
    """Number of the trial with the lowest predicted loss at the larger one."""
    measured_costs_nats: float
    """At the larger budget, the first instead of the second: expected."""
    measured_costs_low: float
    measured_costs_high: float
    predicted_costs_nats: float
    """At the search's budget, the second instead of the first."""


@dataclass(frozen=True)
class StudyFit:
    """A law fitted to a study, and what follows from it for `scale` times the budget."""

    scale: float
    refusal: str | None
    fit: ScalingFit | None = None
    effects: Effects | None = None
    """Of the settings that the law does not know."""
    points: Points = field(default_factory=Points)
    candidates: tuple[Candidate, ...] = ()
    """The best predicted first."""
    choice: Choice | None = None

    def candidate(self, run_id: int) -> Candidate | None:
        """What is predicted of a trial."""
        return next((c for c in self.candidates if c.run_id == run_id), None)

    def _points_dict(self) -> list[dict[str, Any]]:
        """What was fitted: losses without what the settings beside the law's changed."""
        effects = self.effects
        fitted = self.points.observations if effects is None else freed(self.points, effects)
        return [
            {
                "run_id": run.id,
                "point": kind_of_point(run),
                "n_params": one.n_params,
                "tokens": one.tokens,
                "val_loss_nats": one.loss_nats,
                "max_lr": one.max_lr,
                "batch_tokens": one.batch_tokens,
            }
            for run, one in zip(self.points.runs, fitted, strict=True)
        ]

    def predict(self, config: RunConfig) -> Prediction | None:
        """The loss of a run at the end of its schedule; None: there is no law."""
        if self.fit is None or self.effects is None:
            return None
        return _predict(self.fit, self.effects, config, self.points.of_shape(config))

    def tuned(self, wanted: RunConfig, filled: RunConfig) -> RunConfig:
        """A promotion at the learning rate that the law holds for best.

        Args:
            wanted: its configuration, steps not yet filled.
            filled: the same with steps.
        """
        if self.fit is None:
            return wanted
        tuned = at_best_rate(filled, self.fit)
        return wanted.with_changes(max_lr=tuned.max_lr, min_lr=tuned.final_lr, min_lr_ratio=None)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for the database."""
        return {
            "fit": None if self.fit is None else self.fit.to_dict(),
            "points": self._points_dict(),
            "left_out": self.points.left_out,
            "level": LEVEL,
            "candidates": [vars(candidate) for candidate in self.candidates],
            "choice": None if self.choice is None else vars(self.choice),
        }


def fit_study(study: Study, runs: Sequence[Run], scale: float) -> StudyFit:
    """Fit a law to the finished runs of a study and predict every trial's promotion.

    Args:
        study: its row.
        runs: its runs: trials, branches and promotions.
        scale: budget of the promotion, as a multiple of the study's.
    """
    # A promotion of this budget is what is predicted: its own loss must not choose it again.
    points = Points.of(run for run in runs if run.scale is None or run.scale < scale)
    try:
        law, effects = fit_points(points)
    except FitRefused as refused:
        return StudyFit(scale, str(refused), points=points)
    candidates = _candidates(study, points, law, effects, scale)
    choice = _choice(study, points, law, candidates, scale)
    return StudyFit(scale, None, law, effects, points, candidates, choice)


def predict_run(
    study: Study, law: ScalingFit, effects: Effects, run: Run, scale: float
) -> float | None:
    """Loss that a finished trial's shape is predicted to reach at `scale` times the budget."""
    config = parse(RunConfig, run.config, f"{run.kind} {run.number}")
    if scale == 1.0:
        if run.has_whole_budget:
            return run.val_loss_nats
        budget, convention = study.budget_flops, study.convention
        steps = affordable_steps(config, budget, convention)  # type: ignore[arg-type]
        there: RunConfig | None = config.with_changes(num_training_steps=max(1, steps))
    else:
        there = promoted(study, config, scale, law)
    return None if there is None else _predict(law, effects, there, Points.of([run])).loss_nats


def _predict(law: ScalingFit, effects: Effects, there: RunConfig, anchors: Points) -> Prediction:
    """What the law says of a configuration, given measured runs of its shape."""
    nats, sd = effects.of(there)
    told = law.predict(
        float(there.n_charged_params),
        float(there.total_tokens),
        max_lr=there.max_lr,
        batch_tokens=float(there.tokens_per_step),
        tuned=False,
        level=LEVEL,
        anchors=freed(anchors, effects),
    )
    middle = told.loss_nats + nats
    reach = Z_LEVEL * sd
    return dataclasses.replace(
        told,
        loss_nats=middle,
        low_nats=middle - math.hypot(told.loss_nats - told.low_nats, reach),
        high_nats=middle + math.hypot(told.high_nats - told.loss_nats, reach),
    )


def promoted(
    study: Study, config: RunConfig, scale: float, law: ScalingFit | None = None
) -> RunConfig | None:
    """What the rule makes of a trial at the larger budget; None where it pays no step.

    With a law that knows learning rates, the rate is that of `at_best_rate`.
    """
    budget = int(scale * study.budget_flops)
    limits = Limits(budget, study.convention)  # type: ignore[arg-type]
    try:
        wanted, _ = promoted_config(config, budget, (), limits)
    except ConfigError:
        return None
    steps = affordable_steps(wanted, budget, limits.convention)
    if not steps:
        return None
    later = wanted.with_changes(num_training_steps=steps)
    return later if law is None else at_best_rate(later, law)


def at_best_rate(config: RunConfig, law: ScalingFit) -> RunConfig:
    """A promotion at the learning rate that a law holds for best, the last rate in proportion.

    Within a factor `RATE_REACH` of what the rule made of the trial's own rate, which has at least
    been tried.
    """
    if not law.knows_lr:
        return config
    best = law.tuned_lr(
        float(config.n_charged_params), float(config.total_tokens), float(config.tokens_per_step)
    )
    factor = min(max(best / config.max_lr, 1.0 / RATE_REACH), RATE_REACH)
    rate = float(f"{config.max_lr * factor:.4g}")
    last = float(f"{config.final_lr * factor:.4g}")
    return config.with_changes(max_lr=rate, min_lr=last, min_lr_ratio=None)


def _candidates(
    study: Study, points: Points, law: ScalingFit, effects: Effects, scale: float
) -> tuple[Candidate, ...]:
    found = []
    for run, config in zip(points.runs, points.configs, strict=True):
        later = promoted(study, config, scale, law)
        if run.kind != "trial" or later is None:
            continue
        anchors = points.of_shape(config)
        there = _predict(law, effects, later, anchors)
        measured = run.val_loss_nats if run.has_whole_budget else None
        here = measured
        if here is None:
            here = predict_run(study, law, effects, run, 1.0)
            assert here is not None
        found.append(
            Candidate(
                run_id=run.id,
                number=run.number,
                n_params=run.n_params,
                tokens=later.total_tokens,
                measured_nats=measured,
                at_budget_nats=here,
                loss_nats=there.loss_nats,
                low_nats=there.low_nats,
                high_nats=there.high_nats,
                flops_ratio=there.extrapolation.flops_ratio,
            )
        )
    return tuple(sorted(found, key=lambda c: (c.loss_nats, c.number)))


def _choice(
    study: Study,
    points: Points,
    law: ScalingFit,
    candidates: Sequence[Candidate],
    scale: float,
) -> Choice | None:
    import numpy as np

    whole = [c for c in candidates if c.measured_nats is not None]
    if not whole:
        return None
    measured = min(whole, key=lambda c: (c.at_budget_nats, c.number))
    predicted = candidates[0]
    configs = {run.id: config for run, config in zip(points.runs, points.configs, strict=True)}
    pair = [promoted(study, configs[c.run_id], scale, law) for c in (measured, predicted)]
    one, other = (config for config in pair if config is not None)
    drawn = law.sample_losses(
        [float(one.n_charged_params), float(other.n_charged_params)],
        [float(one.total_tokens), float(other.total_tokens)],
        np.random.default_rng(0),
        DRAWS,
        max_lr=[one.max_lr, other.max_lr],
        batch_tokens=[float(one.tokens_per_step), float(other.tokens_per_step)],
    )
    costs = drawn[:, 0] - drawn[:, 1]
    middle = measured.loss_nats - predicted.loss_nats
    # The draws know the law's uncertainty, the two predictions what is known of each shape besides.
    low, high = np.quantile(costs - costs.mean(), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Choice(
        measured=measured.number,
        predicted=predicted.number,
        measured_costs_nats=middle,
        measured_costs_low=middle + float(low),
        measured_costs_high=middle + float(high),
        predicted_costs_nats=predicted.at_budget_nats - measured.at_budget_nats,
    )
