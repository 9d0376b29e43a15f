"""A fitted scaling law: losses of runs that were not made, with intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import stdtrit

from studies.scaling.fit_data import FLOPS_PER_PARAM_TOKEN, FitData, FitPoint
from studies.scaling.law import FloatArray, ScalingLaw
from studies.scaling.likelihood import Centre, best_ln_lr, law_of, log_loss

LEVEL = 0.8
"""Probability of the intervals that are shown and stored."""
MISFIT_SHARE = 0.7
"""Misfit of the law for each factor of e beyond the largest budget fitted, as a multiple of the
scatter of runs around it: most of that scatter is the law's own misfit."""
UNDERTRAINED_BELOW = 3.0
"""Tokens per parameter below which no such law holds."""
UNDERTRAINED_SD = 0.1
"""Relative misfit for each factor of e below that, of runs whose batch is not known."""
UNDERTRAINED_TUNED_SD = 0.02
"""The same where it is known or at its optimum. *Assumption*: most of the misfit of published runs
comes of a batch that was chosen for longer ones."""
FEW_STEPS = 100.0
"""Steps below which a run is of its warm-up rather than of the law."""
FEW_STEPS_SD = 0.05
"""Relative misfit for each factor of e below that. *Assumption*: runs of byte models of
2 to 5 steps ended 8 to 18 % below the law, because they begin at the token frequencies."""
SIGNIFICANT = 6
"""Digits of the numbers in `to_dict`."""


def undertrained_sd(points: FitData, *, tuned: bool = False) -> FloatArray:
    """Relative misfit of the law for runs of few tokens per parameter or few steps: (points,)."""
    below = math.log(UNDERTRAINED_BELOW) - (points.tokens - points.n_params)
    unknown = np.isnan(points.batch_tokens) & (not tuned)
    slope = np.where(unknown, UNDERTRAINED_SD, UNDERTRAINED_TUNED_SD)
    steps = points.tokens - points.batch_tokens
    few = np.where(np.isnan(steps), 0.0, np.maximum(0.0, math.log(FEW_STEPS) - steps))
    return np.hypot(slope * np.maximum(0.0, below), FEW_STEPS_SD * few)


@dataclass(frozen=True)
class Extrapolation:
    """How far a prediction lies from the data points of its fit."""

    flops_ratio: float
    """FLOPs over the largest budget fitted; 1 or less: no extrapolation in compute."""
    n_params_outside: bool
    """Whether N lies outside the sizes fitted."""
    tokens_outside: bool
    """Whether D lies outside the tokens fitted."""


@dataclass(frozen=True)
class LossPrediction:
    """A predicted loss with the interval that holds the measured one with probability `level`."""

    loss_nats: float
    low_nats: float
    high_nats: float
    extrapolation: Extrapolation
    level: float = LEVEL


@dataclass(frozen=True, eq=False)
class ScalingFit:
    """A fitted law with its uncertainty and the range that it was fitted on."""

    theta: FloatArray
    """(parameters,) the most probable ones, in the order of `priors.NAMES`."""
    draws: FloatArray
    """(draws, parameters) of the posterior."""
    centre: Centre
    noise: float
    """Relative scatter of a run around the law."""
    dof: float
    """Degrees of freedom of `noise`."""
    shape_share: float
    """Share of the scatter's variance that runs of one size have in common."""
    n_points: int
    n_shapes: int
    n_budgets: int
    n_params_range: tuple[float, float]
    tokens_range: tuple[float, float]
    flops_range: tuple[float, float]
    knows_lr: bool
    """Whether the points have learning rates; else all that is known of them is the prior."""
    knows_batch: bool
    """Whether the points have tokens per step; else all that is known of them is the prior."""

    @property
    def law(self) -> ScalingLaw:
        """The law of well tuned runs."""
        return law_of(self.theta, self.centre)

    @property
    def k_lr_nats(self) -> float:
        """Nats that a learning rate a factor of e from the optimum costs."""
        return float(np.exp(self.theta[6]))

    @property
    def k_batch_nats(self) -> float:
        """Nats that a batch a factor of e from the optimum costs."""
        return float(np.exp(self.theta[11]))

    def tuned_lr(self, n_params: float, tokens: float, batch_tokens: float | None = None) -> float:
        """Best peak learning rate; without `batch_tokens`, at the best batch."""
        batch = np.log([batch_tokens]) if batch_tokens else np.array([np.nan])
        best = best_ln_lr(self.theta, self.centre, np.log([n_params]), np.log([tokens]), batch)
        return float(np.exp(best[0]))

    def draw(self, rng: np.random.Generator) -> ScalingFit:
        """A fit that is one draw of this one's posterior, certain of itself (Thompson sampling)."""
        theta = self.draws[rng.integers(len(self.draws))]
        return replace(self, theta=theta, draws=theta[None])

    def losses(
        self,
        n_params: ArrayLike,
        tokens: ArrayLike,
        *,
        max_lr: ArrayLike | None = None,
        batch_tokens: ArrayLike | None = None,
    ) -> FloatArray:
        """Most probable losses in nats: (runs,); a setting not given is taken as well tuned."""
        return np.exp(self.log_losses(FitData.to_predict(n_params, tokens, max_lr, batch_tokens)))

    def log_losses(self, points: FitData) -> FloatArray:
        """The logarithms of the most probable losses of runs as they were tuned: (runs,)."""
        return log_loss(self.theta, self.centre, points)

    def predict(
        self,
        n_params: float,
        tokens: float,
        *,
        max_lr: float | None = None,
        batch_tokens: float | None = None,
        anchors: Sequence[FitPoint] = (),
    ) -> LossPrediction:
        """Loss of one run at the end of its schedule.

        `anchors` are measured runs of the very same shape: what they have in common beside the law
        is expected of this run too. A setting that is not given is at its optimum.
        """
        points = FitData.to_predict(n_params, tokens, max_lr, batch_tokens)
        centre = float(log_loss(self.theta, self.centre, points)[0])
        drawn = log_loss(self.draws, self.centre, points)[:, 0]
        anchored, variance = self._anchored(anchors) if anchors else (0.0, self.noise**2)
        misfit = self._misfit_sd(points)[0]
        sd = math.sqrt(float(np.mean((drawn - centre) ** 2)) + variance + misfit**2)
        reach = float(stdtrit(max(self.dof, 2.0), (1 + LEVEL) / 2)) * sd
        middle = centre + anchored
        return LossPrediction(
            loss_nats=math.exp(middle),
            low_nats=math.exp(middle - reach),
            high_nats=math.exp(middle + reach),
            extrapolation=self.extrapolation(n_params, tokens),
        )

    def sample_losses(
        self,
        n_params: ArrayLike,
        tokens: ArrayLike,
        rng: np.random.Generator,
        n: int,
        *,
        max_lr: ArrayLike | None = None,
        batch_tokens: ArrayLike | None = None,
    ) -> FloatArray:
        """Draws of the expected losses of several runs together, in nats: (n, runs).

        Each row is one law of the posterior, so that runs can be compared row by row (regret,
        probability of being the best); a run's own scatter is not in it. A setting that is not
        given is at its optimum.
        """
        points = FitData.to_predict(n_params, tokens, max_lr, batch_tokens)
        chosen = self.draws[rng.integers(len(self.draws), size=n)]
        drawn = log_loss(chosen, self.centre, points)
        # One misfit a row: the law as a whole is off, not each run by itself.
        drawn = drawn + rng.standard_normal((n, 1)) * self._misfit_sd(points)
        return np.exp(drawn)

    def extrapolation(self, n_params: float, tokens: float) -> Extrapolation:
        """How far a run lies from the points of the fit."""

        def outside(value: float, limits: tuple[float, float]) -> bool:
            return not limits[0] / 1.001 <= value <= limits[1] * 1.001

        return Extrapolation(
            flops_ratio=FLOPS_PER_PARAM_TOKEN * n_params * tokens / self.flops_range[1],
            n_params_outside=outside(n_params, self.n_params_range),
            tokens_outside=outside(tokens, self.tokens_range),
        )

    def best_params(self, flops: float) -> float:
        """The N with the lowest predicted loss at 6 · N · D = `flops`."""
        return self.law.best_params(flops)

    def best_params_interval(self, flops: float) -> tuple[float, float]:
        """Interval of that N over the draws, of `LEVEL`."""
        best = [law_of(draw, self.centre).best_params(flops) for draw in self.draws]
        low, high = np.quantile(best, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        return float(low), float(high)

    def _misfit_sd(self, points: FitData) -> FloatArray:
        """Relative misfit of the law beyond its budgets and at few tokens per parameter."""
        flops = points.n_params + points.tokens + math.log(FLOPS_PER_PARAM_TOKEN)
        beyond = np.maximum(0.0, flops - math.log(self.flops_range[1]))
        return np.hypot(
            MISFIT_SHARE * self.noise * beyond, undertrained_sd(points, tuned=self.knows_batch)
        )

    def _anchored(self, anchors: Sequence[FitPoint]) -> tuple[float, float]:
        """Expected residual of a shape with measured runs, and the variance that is left.

        The best linear prediction of a random effect that a shape has in all its runs.
        """
        points = FitData.of(anchors)
        residual = points.loss - log_loss(self.theta, self.centre, points)
        common = self.shape_share * self.noise**2
        few = undertrained_sd(points)
        own = self.noise**2 - common + points.stderr**2 + few**2
        precision = float(np.sum(1.0 / own))
        weight = common * precision / (1.0 + common * precision)
        mean = float(np.sum(residual / own)) / precision
        variance = self.noise**2 - weight * common
        return weight * mean, variance

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        data: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        for name in _ARRAYS:
            data[name] = _rounded(data[name])
        for name in _RANGES:
            data[name] = list(data[name])
        return {**data, "centre": [self.centre.ln_n, self.centre.ln_tokens]}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ScalingFit:
        """The fit that `to_dict` wrote."""
        values = {**data, "centre": Centre(*data["centre"])}
        for name in _ARRAYS:
            values[name] = np.array(data[name], dtype=float)
        for name in _RANGES:
            values[name] = tuple(data[name])
        return cls(**values)


_ARRAYS = ("theta", "draws")
_RANGES = ("n_params_range", "tokens_range", "flops_range")


def _rounded(values: FloatArray) -> list[Any]:
    if values.ndim > 1:
        return [_rounded(row) for row in values]
    return [float(f"{value:.{SIGNIFICANT}g}") for value in values]
