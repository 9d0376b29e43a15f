"""What a study's runs say of a larger budget: its law, and which trial to promote.

Two answers belong together: the trial that measured best at the search's budget, and the one whose
shape is predicted to be best at the larger one. They often differ (docs/scaling.md), so both are
kept with what each costs in the other's place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from budgetsweep.config import parse
from budgetsweep.constraint import Limits, affordable_steps
from budgetsweep.errors import ConfigError, FitRefused
from studies.database.run_kind import RunKind
from studies.database.tables import Run, Study
from studies.promotion.rescaling import promoted_config
from studies.scaling.study_fit import LEVEL, CountedLaw, StudyLaw, counted, fit_points, freed
from studies.scaling.study_points import Points
from trainer.config import RunConfig

if TYPE_CHECKING:
    from studies.prior_studies import Earlier
    from studies.scaling.result import Prediction

DRAWS = 400
RATE_REACH = 2.0
"""*Assumption*: the fitted rate is believed within this factor of the rule's."""


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
    law: StudyLaw | None = None
    points: Points = field(default_factory=Points)
    candidates: tuple[Candidate, ...] = ()
    """The best predicted first."""
    choice: Choice | None = None

    def _points_dict(self) -> list[dict[str, Any]]:
        """What was fitted: losses without what the settings beside the law's changed.

        Where no law was found, losses as they were measured.
        """
        main = None if self.law is None else self.law.main
        if main is None:
            fitted = counted(self.points, "charged")
        else:
            fitted = freed(self.points, main.counts, main.effects)
        return [
            {
                "run_id": run.id,
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
        if self.law is None:
            return None
        return self.law.predict(config, self.points.of_shape(config))

    def tuned(self, wanted: RunConfig, filled: RunConfig) -> RunConfig:
        """A promotion at the learning rate that the law holds for best.

        Args:
            wanted: its configuration, steps not yet filled.
            filled: the same with steps.
        """
        if self.law is None:
            return wanted
        tuned = at_best_rate(filled, self.law.main)
        return wanted.with_changes(max_lr=tuned.max_lr, min_lr=tuned.final_lr, min_lr_ratio=None)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for the database."""
        main = None if self.law is None else self.law.main
        return {
            "fit": None if main is None else main.fit.to_dict(),
            "counts": None if main is None else main.counts,
            "weight": None if main is None else main.weight,
            "points": self._points_dict(),
            "left_out": self.points.left_out,
            "earlier": self.points.earlier,
            "level": LEVEL,
            "candidates": [vars(candidate) for candidate in self.candidates],
            "choice": None if self.choice is None else vars(self.choice),
        }


def fit_study(
    study: Study, runs: Sequence[Run], scale: float, earlier: Earlier | None = None
) -> StudyFit:
    """Fit a law to the finished runs of a study and predict every trial's promotion.

    Args:
        study: its row.
        runs: its runs: trials and promotions.
        scale: budget of the promotion, as a multiple of the study's.
        earlier: runs of other studies that are points too, by the names of these.
    """
    # A promotion of this budget is what is predicted: its own loss must not choose it again.
    points = Points.of((r for r in runs if r.scale is None or r.scale < scale), earlier)
    try:
        law = fit_points(points)
    except FitRefused as refused:
        return StudyFit(scale, str(refused), points=points)
    candidates = _candidates(study, points, law, scale)
    choice = _choice(study, points, law, candidates, scale)
    return StudyFit(scale, None, law, points, candidates, choice)


def predict_run(study: Study, law: StudyLaw, run: Run, scale: float) -> float | None:
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
    return None if there is None else law.predict(there, Points.of([run])).loss_nats


def promoted(
    study: Study, config: RunConfig, scale: float, law: StudyLaw | None = None
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
    return later if law is None else at_best_rate(later, law.main)


def at_best_rate(config: RunConfig, law: CountedLaw) -> RunConfig:
    """A promotion at the learning rate that a law holds for best, the last rate in proportion.

    Within a factor `RATE_REACH` of what the rule made of the trial's own rate, which has at least
    been tried.
    """
    if not law.fit.knows_lr:
        return config
    factor = min(max(law.best_lr(config) / config.max_lr, 1.0 / RATE_REACH), RATE_REACH)
    rate = float(f"{config.max_lr * factor:.4g}")
    last = float(f"{config.final_lr * factor:.4g}")
    return config.with_changes(max_lr=rate, min_lr=last, min_lr_ratio=None)


def _candidates(study: Study, points: Points, law: StudyLaw, scale: float) -> tuple[Candidate, ...]:
    found = []
    for run, config in zip(points.runs, points.configs, strict=True):
        later = promoted(study, config, scale, law)
        if run.study_id != study.id or run.kind != RunKind.TRIAL or later is None:
            continue
        anchors = points.of_shape(config)
        there = law.predict(later, anchors)
        measured = run.val_loss_nats if run.has_whole_budget else None
        here = measured
        if here is None:
            here = predict_run(study, law, run, 1.0)
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
    law: StudyLaw,
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
    costs = law.sample_differences(one, other, np.random.default_rng(0), DRAWS)
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
