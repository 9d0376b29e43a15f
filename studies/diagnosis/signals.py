"""What the rules look at, measured once from a curve: noise, falls, half-way, norms."""

from __future__ import annotations

import math
from functools import cached_property

import numpy as np

from studies.diagnosis.curves import Curve, FloatArray
from studies.diagnosis.facts import CurveFacts
from studies.diagnosis.steps import smoothed

MOST_POINTS = 200
FEWEST_POINTS = 12
LATE = 0.4
"""Share of the steps from which noise is measured: the first descent is over in a sound run."""
FEWEST_LATE_NORMS = 12
SPIKE = 4.0


class Signals:
    """Measures of one curve, computed when asked for."""

    def __init__(self, curve: Curve, facts: CurveFacts) -> None:
        known = np.isfinite(curve.train_loss_nats) & (curve.step > 0)
        self.facts = facts
        self.steps: FloatArray = curve.step[known]
        self.train: FloatArray = curve.train_loss_nats[known]
        measured = np.isfinite(curve.val_loss_nats)
        self.val_steps: FloatArray = curve.step[measured]
        self.val: FloatArray = curve.val_loss_nats[measured]
        rated = np.isfinite(curve.lr)
        self.lr_steps: FloatArray = curve.step[rated]
        self.lr: FloatArray = curve.lr[rated]
        normed = np.isfinite(curve.grad_norm) & (curve.grad_norm > 0)
        self.norm_steps: FloatArray = curve.step[normed]
        self.norms: FloatArray = curve.grad_norm[normed]
        counted = curve.tokens[np.isfinite(curve.tokens)]
        self.tokens = float(counted[-1]) if counted.size and counted[-1] > 0 else None

    @cached_property
    def last_step(self) -> float:
        """Step of the last training loss."""
        return float(self.steps[-1])

    @cached_property
    def planned_steps(self) -> float:
        """Steps of the whole schedule, as far as they are known."""
        return float(max(self.last_step, self.facts.num_steps or 0))

    @cached_property
    def smooth(self) -> FloatArray:
        """The training loss without most of its noise."""
        return smoothed(self.train)

    @cached_property
    def _late(self) -> tuple[FloatArray, FloatArray]:
        """Training loss from `LATE` on: differences of neighbours, residuals of a parabola."""
        late = self.steps >= LATE * self.last_step
        x, y = self.steps[late] / self.last_step, self.train[late]
        if y.size < 8:
            return np.empty(0), np.empty(0)
        trend = np.polyval(np.polyfit(x, y, 2), x)
        y = trend + without_spikes(y - trend)  # else one spike would bend the trend
        residuals = y - np.polyval(np.polyfit(x, y, 2), x)
        return without_spikes(np.diff(y)), residuals

    @cached_property
    def steps_per_point(self) -> float:
        """Steps that one point is the mean of."""
        return float(np.median(np.diff(self.steps)))

    @cached_property
    def noise_nats(self) -> float | None:
        """Standard deviation of a single step's training loss around its trend."""
        differences, _ = self._late
        if not differences.size:
            return None
        return float(np.sqrt(np.mean(differences**2) / 2 * self.steps_per_point))

    @cached_property
    def point_noise_nats(self) -> float:
        """The same for a point of the curve."""
        differences, _ = self._late
        return float(np.sqrt(np.mean(differences**2) / 2)) if differences.size else math.nan

    @cached_property
    def wander(self) -> float | None:
        """Von Neumann's ratio of the late residuals.

        2 where neighbours are independent, less where the loss wanders.
        """
        differences, residuals = self._late
        variance = float(np.mean(residuals**2)) if residuals.size else 0.0
        return float(np.mean(differences**2)) / variance if variance > 0 else None

    @cached_property
    def wander_nats(self) -> float:
        """Standard deviation of the late residuals of points."""
        _, residuals = self._late
        return float(np.sqrt(np.mean(residuals**2))) if residuals.size else 0.0

    @cached_property
    def start_nats(self) -> float:
        """Loss before training: ln V where the vocabulary is known, else the first point.

        The latter too where the head began with the frequencies: they alone are far below ln V.
        """
        uniform = None if self.facts.knows_frequencies else self.facts.uniform_loss_nats
        return max(uniform or 0.0, float(self.train[0]))

    @cached_property
    def half_way(self) -> float:
        """Share of the steps after which half of the whole descent was done."""
        end = float(self.train[-max(2, self.train.size // 20) :].mean())
        half = self.start_nats - (self.start_nats - end) / 2
        below = np.flatnonzero(self.train <= half)
        index = int(below[0]) if below.size else self.train.size - 1
        if index == 0:
            return float(self.steps[0]) / self.last_step
        above, under = float(self.train[index - 1]), float(self.train[index])
        part = (above - half) / (above - under) if above > under else 1.0
        step = self.steps[index - 1] + part * (self.steps[index] - self.steps[index - 1])
        return float(step) / self.last_step

    def train_at(self, share: float, width: float = 0.05) -> float:
        """Mean training loss around a share of the steps."""
        x = self.steps / self.last_step
        near = np.abs(x - share) <= width
        if not near.any():
            near = np.abs(x - share) == np.abs(x - share).min()
        return float(self.train[near].mean())

    @cached_property
    def falls(self) -> tuple[float, float]:
        """Fall of the training loss per doubling of steps: at 15 to 45 % of the run, and after."""
        early, middle, end = (self.train_at(share) for share in (0.15, 0.45, 0.95))
        return (early - middle) / math.log2(0.45 / 0.15), (middle - end) / math.log2(0.95 / 0.45)

    @cached_property
    def late_norms(self) -> FloatArray:
        """Gradient norms from `LATE` on."""
        return self.norms[self.norm_steps >= LATE * self.last_step]

    @cached_property
    def norm_jumps(self) -> float | None:
        """Median change of the late norms' logarithm from point to point; None with few points."""
        late = self.late_norms
        if late.size < FEWEST_LATE_NORMS:
            return None
        return float(np.median(np.abs(np.diff(np.log(late)))))

    @cached_property
    def peak_lr_step(self) -> float | None:
        """First step at which the rate was (within 1 %) at its highest."""
        if self.lr.size < 3 or self.lr.max() <= 0:
            return None
        return float(self.lr_steps[np.argmax(self.lr >= 0.99 * self.lr.max())])


def without_spikes(values: FloatArray) -> FloatArray:
    """Values with those beyond `SPIKE` robust standard deviations pulled in to there."""
    limit = SPIKE * float(np.median(np.abs(values))) / 0.6745
    return np.clip(values, -limit, limit)
