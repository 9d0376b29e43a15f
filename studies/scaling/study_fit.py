"""The law of a study: fitted to runs of a search, effects of other settings included.

Which parameters are a model's size? Published laws count those of the blocks alone, or the head's
too, and fits of small models differ by it (Porian et al. 2024 trace half of the gap between Kaplan
and Hoffmann to it). So both are fitted, each weighs as much as the runs lie close to it, and what
they disagree about widens the interval.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from budgetsweep.errors import FitRefused
from studies.scaling.covariates import NO_EFFECTS, CovariateEffects, fit_covariates
from studies.scaling.fit import check_design, fit
from studies.scaling.fit_data import FitData, FitPoint
from studies.scaling.fitted_runs import FittedRuns, fit_point
from studies.scaling.law import FloatArray
from studies.scaling.likelihood import huber
from studies.scaling.result import LossPrediction, ScalingFit, undertrained_sd
from trainer.config import RunConfig

Z_LEVEL = 1.2816
"""Of a normal distribution, half of the interval of `LEVEL`."""

Counts = Literal["charged", "blocks"]
"""What N is: the active parameters (of a sampled softmax only its rows), or those of the blocks."""
COUNTS: tuple[Counts, ...] = get_args(Counts)
BELIEF: dict[Counts, float] = {"charged": 0.75, "blocks": 0.25}
"""Before any run (*assumption*): with the head counted, published fits agree (Porian et al.)."""


def size_of(config: RunConfig, counts: Counts) -> float:
    """N of a configuration, at least 1."""
    return float(config.n_active_params if counts == "charged" else max(1, config.n_block_params))


def points_of(
    runs: FittedRuns, counts: Counts, effects: CovariateEffects = NO_EFFECTS
) -> list[FitPoint]:
    """The runs as data points, without what their other settings changed of their losses."""
    points = []
    for run, config in zip(runs.runs, runs.configs, strict=True):
        point = fit_point(run, config, size_of(config, counts), known_settings=runs.known_settings)
        points.append(dataclasses.replace(point, loss_nats=point.loss_nats - effects.of(config)[0]))
    return points


@dataclass(frozen=True)
class CountedLaw:
    """A law in one count of N."""

    counts: Counts
    fit: ScalingFit
    effects: CovariateEffects
    """Of the settings that the law does not know."""
    weight: float
    """How much it is to be believed beside the other count's; they sum to 1."""

    def best_lr(self, config: RunConfig) -> float:
        """Best peak learning rate of a filled configuration, at its batch."""
        size = size_of(config, self.counts)
        return self.fit.tuned_lr(size, float(config.total_tokens), float(config.tokens_per_step))

    def predict(self, config: RunConfig, anchors: FittedRuns) -> LossPrediction:
        """Loss of a filled configuration at its end; anchors are measured runs of its shape."""
        nats, sd = self.effects.of(config)
        by_law = self.fit.predict(
            size_of(config, self.counts),
            float(config.total_tokens),
            max_lr=config.max_lr,
            batch_tokens=float(config.tokens_per_step),
            anchors=points_of(anchors, self.counts, self.effects),
        )
        middle, reach = by_law.loss_nats + nats, Z_LEVEL * sd
        return dataclasses.replace(
            by_law,
            loss_nats=middle,
            low_nats=middle - math.hypot(by_law.loss_nats - by_law.low_nats, reach),
            high_nats=middle + math.hypot(by_law.high_nats - by_law.loss_nats, reach),
        )

    def sample_differences(
        self, one: RunConfig, other: RunConfig, rng: np.random.Generator, n: int
    ) -> FloatArray:
        """Draws of the expected loss of one run less that of another, in nats: (n,)."""
        pair = (one, other)
        drawn = self.fit.sample_losses(
            [size_of(config, self.counts) for config in pair],
            [float(config.total_tokens) for config in pair],
            rng,
            n,
            max_lr=[config.max_lr for config in pair],
            batch_tokens=[float(config.tokens_per_step) for config in pair],
        )
        return drawn[:, 0] - drawn[:, 1]


@dataclass(frozen=True)
class StudyLaw:
    """The laws of one study in each count of N, the most credible first."""

    laws: tuple[CountedLaw, ...]

    @property
    def main(self) -> CountedLaw:
        """The one to be drawn and to take learning rates from."""
        return self.laws[0]

    def predict(self, config: RunConfig, anchors: FittedRuns) -> LossPrediction:
        """The weighted mean of the laws, with what they disagree about in its interval."""
        each = [(law.weight, law.predict(config, anchors)) for law in self.laws]
        middle = math.fsum(weight * one.loss_nats for weight, one in each)

        def reach(side: str) -> float:
            squares = (
                weight
                * (
                    (getattr(one, side) - one.loss_nats) ** 2
                    + (Z_LEVEL * (one.loss_nats - middle)) ** 2
                )
                for weight, one in each
            )
            return math.sqrt(math.fsum(squares))

        return dataclasses.replace(
            each[0][1],
            loss_nats=middle,
            low_nats=middle - reach("low_nats"),
            high_nats=middle + reach("high_nats"),
        )

    def sample_differences(
        self, one: RunConfig, other: RunConfig, rng: np.random.Generator, n: int
    ) -> FloatArray:
        """Draws of the expected loss of one run less that of another, in nats: about (n,)."""
        parts = [
            law.sample_differences(one, other, rng, round(n * law.weight)) for law in self.laws
        ]
        return np.concatenate(parts)


def fit_runs(runs: FittedRuns) -> StudyLaw:
    """Fit the law of some runs in each count of N, and the effects of its covariates, in turns.

    `runs` are those of one study and its prior ones.

    Raises:
        FitRefused: the runs are too few or too alike.
    """
    # Budgets are of what is charged: at one of them the blocks' FLOPs differ, and could pass for
    # several.
    check_design(points_of(runs, "charged"))
    # Of a table's runs only one size is known.
    every: tuple[Counts, ...] = COUNTS if runs.known_settings else ("charged",)
    found: list[tuple[Counts, ScalingFit, CovariateEffects]] = []
    refused: list[FitRefused] = []
    for counts in every:
        try:
            found.append((counts, *_fit_counted(runs, counts)))
        except FitRefused as why:
            refused.append(why)
    if not found:
        raise refused[0]
    weights = _weights(runs, found)
    laws = [CountedLaw(*one, weight) for one, weight in zip(found, weights, strict=True)]
    return StudyLaw(tuple(sorted(laws, key=lambda law: -law.weight)))


def _weights(
    runs: FittedRuns, found: Sequence[tuple[Counts, ScalingFit, CovariateEffects]]
) -> FloatArray:
    """How much each law is to be believed: its share of the likelihood of the losses.

    All are held to the same scatter, the smallest, and the same doubt of runs with few tokens per
    parameter: in the smaller count fewer runs are doubted, and that alone would let it win.
    """
    charged = FitData.of(points_of(runs, "charged"))
    doubt = np.hypot(charged.stderr, undertrained_sd(charged))
    spread = np.hypot(min(law.noise for _, law, _ in found), doubt)
    scores = []
    for counts, law, effects in found:
        points = FitData.of(points_of(runs, counts, effects))
        energy = huber(np.abs(points.loss - law.log_losses(points)) / spread)
        scores.append(math.log(BELIEF[counts]) - float(energy.sum()))
    weights = np.exp(np.array(scores) - max(scores))
    return np.asarray(weights / weights.sum(), dtype=np.float64)


def _fit_counted(runs: FittedRuns, counts: Counts) -> tuple[ScalingFit, CovariateEffects]:
    measured = points_of(runs, counts)
    law = fit(measured, must_reach=False)
    effects = _effects(runs, measured, law)
    law = fit(points_of(runs, counts, effects))
    return law, _effects(runs, measured, law)


def _effects(runs: FittedRuns, measured: Sequence[FitPoint], law: ScalingFit) -> CovariateEffects:
    """What the covariates explain of the residuals of a law."""
    if not runs.known_settings:
        return NO_EFFECTS
    residuals, spread = [], []
    few = undertrained_sd(FitData.of(measured))
    for point, off in zip(measured, few, strict=True):
        expected = law.losses(
            point.n_params, point.tokens, max_lr=point.max_lr, batch_tokens=point.batch_tokens
        )
        residuals.append(point.loss_nats - float(expected[0]))
        spread.append(math.hypot(point.loss_nats * math.hypot(law.noise, off), point.stderr_nats))
    return fit_covariates(runs.configs, np.array(residuals), np.array(spread))
