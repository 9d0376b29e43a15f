"""What a study's runs predict of a larger budget, and which trial to promote.

Two answers belong together: the trial that measured best at the search's budget, and the one whose
shape is predicted to be best at the larger one. They often differ (docs/scaling.md), so both are
kept with the regret of each at the other's budget.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from budgetsweep.config import parse
from budgetsweep.constraint import Limits, affordable_steps
from budgetsweep.errors import ConfigError, FitRefused
from studies.database.run_kind import RunKind
from studies.database.tables import Run, Study
from studies.scaling.fitted_runs import FittedRuns, PriorRuns
from studies.scaling.rescaling import promoted_config
from studies.scaling.result import LEVEL, LossPrediction
from studies.scaling.study_fit import CountedLaw, StudyLaw, fit_runs, points_of
from trainer.config import RunConfig

DRAWS = 400
LR_REACH = 2.0
"""A law may change the rule's learning rate by at most this factor (*assumption*)."""


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
class PromotionChoice:
    """The two answers, and the regret of each at the other's budget."""

    measured: int
    """Number of the trial with the lowest loss at the search's budget."""
    predicted: int
    """Number of the trial with the lowest predicted loss at the larger one."""
    measured_costs_nats: float
    """Expected regret of the first at the larger budget."""
    measured_costs_low: float
    measured_costs_high: float
    predicted_costs_nats: float
    """Regret of the second at the search's budget."""


@dataclass(frozen=True)
class StudyFit:
    """A law fitted to a study, and what follows from it for `scale` times the budget."""

    scale: float
    refusal: str | None
    law: StudyLaw | None = None
    runs: FittedRuns = field(default_factory=FittedRuns)
    candidates: tuple[Candidate, ...] = ()
    """The best predicted first."""
    choice: PromotionChoice | None = None

    def predict(self, config: RunConfig) -> LossPrediction | None:
        """The loss of a run at the end of its schedule; None: there is no law."""
        if self.law is None:
            return None
        return self.law.predict(config, self.runs.of_shape(config))

    def tuned(self, wanted: RunConfig, filled: RunConfig) -> RunConfig:
        """A promotion at the learning rate that the law predicts to be best.

        `filled` is the wanted configuration with its steps.
        """
        if self.law is None:
            return wanted
        tuned = at_best_lr(filled, self.law.main)
        return wanted.with_changes(max_lr=tuned.max_lr, min_lr=tuned.final_lr, min_lr_ratio=None)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for the database.

        The losses of the points are without what the settings beside the law's changed; as they
        were measured where there is no law.
        """
        if self.law is None:
            main, fitted = None, points_of(self.runs, "charged")
        else:
            main = self.law.main
            fitted = points_of(self.runs, main.counts, main.effects)
        points = [
            {
                "run_id": run.id,
                "n_params": point.n_params,
                "tokens": point.tokens,
                "val_loss_nats": point.loss_nats,
                "max_lr": point.max_lr,
                "batch_tokens": point.batch_tokens,
            }
            for run, point in zip(self.runs.runs, fitted, strict=True)
        ]
        return {
            "fit": None if main is None else main.fit.to_dict(),
            "counts": None if main is None else main.counts,
            "weight": None if main is None else main.weight,
            "points": points,
            "left_out": self.runs.left_out,
            "earlier": self.runs.n_prior,
            "level": LEVEL,
            "candidates": [vars(candidate) for candidate in self.candidates],
            "choice": None if self.choice is None else vars(self.choice),
        }


def fit_study(
    study: Study, runs: Sequence[Run], scale: float, prior: PriorRuns | None = None
) -> StudyFit:
    """Fit a law to the finished runs of a study and predict every trial's promotion.

    `runs` are of all kinds, `scale` is the promotion's budget as a multiple of the study's, and
    `prior` are runs of prior studies that are data points too.
    """
    # A promotion of this budget is what is predicted: its own loss must not choose it again.
    below = [r for r in runs if r.scale is None or r.scale < scale]
    fitted = FittedRuns.of(below, prior, known_settings=not study.settings.sizes_only)
    try:
        law = fit_runs(fitted)
    except FitRefused as refused:
        return StudyFit(scale, str(refused), runs=fitted)
    candidates = _candidates(study, fitted, law, scale)
    choice = _choice(study, fitted, law, candidates, scale)
    return StudyFit(scale, None, law, fitted, candidates, choice)


def predict_run(study: Study, law: StudyLaw, run: Run, scale: float) -> float | None:
    """Loss that a finished trial's shape is predicted to reach at `scale` times the budget."""
    config = parse(RunConfig, run.config, f"{run.kind} {run.number}")
    if scale == 1.0:
        if run.has_whole_budget:
            return run.val_loss_nats
        budget, convention = study.budget_flops, study.convention
        steps = affordable_steps(config, budget, convention)
        there: RunConfig | None = config.with_changes(num_training_steps=max(1, steps))
    else:
        there = promoted(study, config, scale, law)
    if there is None:
        return None
    own = FittedRuns.of([run], known_settings=not study.settings.sizes_only)
    return law.predict(there, own).loss_nats


def promoted(
    study: Study, config: RunConfig, scale: float, law: StudyLaw | None = None
) -> RunConfig | None:
    """A trial rescaled to the larger budget; None where that pays no step.

    With a law that knows learning rates, the rate is that of `at_best_lr`.
    """
    budget = int(scale * study.budget_flops)
    limits = Limits(budget, study.convention)
    try:
        wanted, _ = promoted_config(config, budget, (), limits)
    except ConfigError:
        return None
    steps = affordable_steps(wanted, budget, limits.convention)
    if not steps:
        return None
    later = wanted.with_changes(num_training_steps=steps)
    return later if law is None else at_best_lr(later, law.main)


def at_best_lr(config: RunConfig, law: CountedLaw) -> RunConfig:
    """A promotion at the learning rate that a law predicts to be best, the last in proportion.

    Within a factor `LR_REACH` of what the rule made of the trial's own rate, which has at least
    been tried.
    """
    if not law.fit.knows_lr:
        return config
    factor = min(max(law.best_lr(config) / config.max_lr, 1.0 / LR_REACH), LR_REACH)
    rate = float(f"{config.max_lr * factor:.4g}")
    last = float(f"{config.final_lr * factor:.4g}")
    return config.with_changes(max_lr=rate, min_lr=last, min_lr_ratio=None)


def _candidates(
    study: Study, fitted: FittedRuns, law: StudyLaw, scale: float
) -> tuple[Candidate, ...]:
    found = []
    for run, config in zip(fitted.runs, fitted.configs, strict=True):
        if run.study_id != study.id or run.kind != RunKind.TRIAL:
            continue
        later, here = promoted(study, config, scale, law), predict_run(study, law, run, 1.0)
        if later is None:
            continue
        assert here is not None
        there = law.predict(later, fitted.of_shape(config))
        found.append(
            Candidate(
                run_id=run.id,
                number=run.number,
                n_params=run.n_params,
                tokens=later.total_tokens,
                measured_nats=run.val_loss_nats if run.has_whole_budget else None,
                at_budget_nats=here,
                loss_nats=there.loss_nats,
                low_nats=there.low_nats,
                high_nats=there.high_nats,
                flops_ratio=there.extrapolation.flops_ratio,
            )
        )
    return tuple(sorted(found, key=lambda c: (c.loss_nats, c.number)))


def _choice(
    study: Study, fitted: FittedRuns, law: StudyLaw, candidates: Sequence[Candidate], scale: float
) -> PromotionChoice | None:
    whole = [c for c in candidates if c.measured_nats is not None]
    if not whole:
        return None
    measured = min(whole, key=lambda c: (c.at_budget_nats, c.number))
    predicted = candidates[0]
    configs = {run.id: config for run, config in zip(fitted.runs, fitted.configs, strict=True)}
    pair = [promoted(study, configs[c.run_id], scale, law) for c in (measured, predicted)]
    one, other = (config for config in pair if config is not None)
    costs = law.sample_differences(one, other, np.random.default_rng(0), DRAWS)
    middle = measured.loss_nats - predicted.loss_nats
    # The draws know the law's uncertainty, the two predictions what is known of each shape besides.
    low, high = np.quantile(costs - costs.mean(), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return PromotionChoice(
        measured=measured.number,
        predicted=predicted.number,
        measured_costs_nats=middle,
        measured_costs_low=middle + float(low),
        measured_costs_high=middle + float(high),
        predicted_costs_nats=predicted.at_budget_nats - measured.at_budget_nats,
    )
