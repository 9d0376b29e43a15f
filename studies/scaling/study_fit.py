"""The law of a study's runs: fitted to points of a search, effects of other settings included.

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
from studies.diagnosis.curves import FloatArray
from studies.scaling.covariates import Effects, fit_effects
from studies.scaling.fit import HUBER, check_design, fit
from studies.scaling.fit_data import Observation
from studies.scaling.fit_data import Points as Logs
from studies.scaling.result import Prediction, ScalingFit, undertrained_sd
from studies.scaling.study_points import Points, observation
from trainer.config import RunConfig

LEVEL = 0.8
Z_LEVEL = 1.2816
"""Of a normal distribution, half of that interval."""

Counts = Literal["charged", "blocks"]
"""What N is: the active parameters (`model.flops`), or those of the blocks alone."""
COUNTS: tuple[Counts, ...] = get_args(Counts)
BELIEF: dict[Counts, float] = {"charged": 0.75, "blocks": 0.25}
"""Before any run (*assumption*): with the head counted, published fits agree (Porian et al.)."""


@dataclass(frozen=True)
class CountedLaw:
    """A law in one count of N."""

    counts: Counts
    fit: ScalingFit
    effects: Effects
    """Of the settings that the law does not know."""
    weight: float
    """How much it is to be believed beside the other count's; all together 1."""

    def size(self, config: RunConfig) -> float:
        """N of a configuration."""
        return size_of(config, self.counts)

    def best_lr(self, config: RunConfig) -> float:
        """Best peak learning rate of a filled configuration, at its batch."""
        return self.fit.tuned_lr(
            self.size(config), float(config.total_tokens), float(config.tokens_per_step)
        )

    def predict(self, config: RunConfig, anchors: Points) -> Prediction:
        """Loss of a filled configuration at its end.

        Args:
            config: the run.
            anchors: measured runs of its shape.
        """
        nats, sd = self.effects.of(config)
        told = self.fit.predict(
            self.size(config),
            float(config.total_tokens),
            max_lr=config.max_lr,
            batch_tokens=float(config.tokens_per_step),
            tuned=False,
            level=LEVEL,
            anchors=freed(anchors, self.counts, self.effects),
        )
        middle, reach = told.loss_nats + nats, Z_LEVEL * sd
        return dataclasses.replace(
            told,
            loss_nats=middle,
            low_nats=middle - math.hypot(told.loss_nats - told.low_nats, reach),
            high_nats=middle + math.hypot(told.high_nats - told.loss_nats, reach),
        )

    def sample_differences(
        self, one: RunConfig, other: RunConfig, rng: np.random.Generator, n: int
    ) -> FloatArray:
        """Draws of the expected loss of one run less that of another, in nats: (n,)."""
        pair = (one, other)
        drawn = self.fit.sample_losses(
            [self.size(config) for config in pair],
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

    def predict(self, config: RunConfig, anchors: Points) -> Prediction:
        """The weighted mean of the laws, with what they disagree about in its interval."""
        told = [(law.weight, law.predict(config, anchors)) for law in self.laws]
        middle = math.fsum(weight * one.loss_nats for weight, one in told)

        def reach(side: str) -> float:
            squares = (
                weight
                * (
                    (getattr(one, side) - one.loss_nats) ** 2
                    + (Z_LEVEL * (one.loss_nats - middle)) ** 2
                )
                for weight, one in told
            )
            return math.sqrt(math.fsum(squares))

        return dataclasses.replace(
            told[0][1],
            loss_nats=middle,
            low_nats=middle - reach("low_nats"),
            high_nats=middle + reach("high_nats"),
        )

    def sample_differences(
        self, one: RunConfig, other: RunConfig, rng: np.random.Generator, n: int
    ) -> FloatArray:
        """Draws of the expected loss of one run less that of another, in nats: about (n,)."""
        return np.concatenate(
            [
                law.sample_differences(one, other, rng, round(n * law.weight))
                for law in self.laws
            ]
        )  # fmt: skip


def size_of(config: RunConfig, counts: Counts) -> float:
    """N of a configuration, at least 1; of a replayed one as its table counts."""
    if counts == "charged" or config.trainer == "replayed":
        return float(config.n_active_params)
    return float(max(1, config.n_block_params))


def counted(points: Points, counts: Counts) -> list[Observation]:
    """The points with their size in one count."""
    return [
        observation(run, config, size_of(config, counts))
        for run, config in zip(points.runs, points.configs, strict=True)
    ]


def freed(points: Points, counts: Counts, effects: Effects) -> list[Observation]:
    """The same, without what their other settings changed of their losses."""
    return [
        dataclasses.replace(one, loss_nats=one.loss_nats - effects.of(config)[0])
        for config, one in zip(points.configs, counted(points, counts), strict=True)
    ]


def fit_points(points: Points, *, must_reach: bool = True) -> StudyLaw:
    """The laws of some runs and the effects of what they do not know, fitted by turns.

    Args:
        points: of one study.
        must_reach: refuse a law that tells nothing of ten times the largest budget.

    Raises:
        FitRefused: the runs do not carry a law.
    """
    if must_reach:
        # Budgets are of what is charged: at one of them the blocks' FLOPs differ, and could pass
        # for several. A sampler, which compares within a budget, may use that.
        check_design(counted(points, "charged"))
    found: list[tuple[Counts, ScalingFit, Effects]] = []
    refused: FitRefused | None = None
    known: list[list[float]] = []
    for counts in COUNTS:
        sizes = [size_of(config, counts) for config in points.configs]
        if sizes in known:  # of replayed runs both counts are their table's
            continue
        known.append(sizes)
        try:
            found.append((counts, *_fit_counted(points, counts, must_reach)))
        except FitRefused as why:
            refused = refused or why
    if not found:
        assert refused is not None
        raise refused
    weights = _weights(points, found)
    laws = [CountedLaw(*one, weight) for one, weight in zip(found, weights, strict=True)]
    return StudyLaw(tuple(sorted(laws, key=lambda law: -law.weight)))


def _weights(points: Points, found: Sequence[tuple[Counts, ScalingFit, Effects]]) -> FloatArray:
    """How much each law is to be believed: its share of the likelihood of the losses.

    All are held to the same scatter, the smallest, and the same doubt of runs with few tokens a
    parameter: in the smaller count fewer runs are doubted, and that alone would let it win.
    """
    charged = Logs.of(counted(points, "charged"))
    doubt = np.hypot(charged.stderr, undertrained_sd(charged))
    spread = np.hypot(min(law.noise for _, law, _ in found), doubt)
    scores = []
    for counts, law, effects in found:
        runs = Logs.of(freed(points, counts, effects))
        z = np.abs(runs.loss - law.log_losses(runs)) / spread
        energy = np.where(z > HUBER, HUBER * (z - HUBER / 2), z**2 / 2)
        scores.append(math.log(BELIEF[counts]) - float(energy.sum()))
    weights = np.exp(np.array(scores) - max(scores))
    return np.asarray(weights / weights.sum(), dtype=np.float64)


def _fit_counted(points: Points, counts: Counts, must_reach: bool) -> tuple[ScalingFit, Effects]:
    measured = counted(points, counts)
    law = fit(measured, must_reach=False)
    few = undertrained_sd(Logs.of(measured))
    for last in (False, True):
        residuals, spread = [], []
        for one, off in zip(measured, few, strict=True):
            expected = law.losses(
                one.n_params, one.tokens, max_lr=one.max_lr, batch_tokens=one.batch_tokens
            )
            residuals.append(one.loss_nats - float(expected[0]))
            spread.append(math.hypot(one.loss_nats * math.hypot(law.noise, off), one.stderr_nats))
        effects = fit_effects(points.configs, np.array(residuals), np.array(spread))
        if not last:
            law = fit(freed(points, counts, effects), must_reach=must_reach)
    return law, effects
