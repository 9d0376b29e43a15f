"""Gaussian priors of the fit, from published fits.

A few data points cannot determine fourteen parameters; the priors decide the directions that the
points leave open. They are wide, so that a hundred points outvote them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from studies.scaling.law import FloatArray, steplaw_batch_tokens, steplaw_lr

NAMES = (
    "ln_E", "ln_size", "ln_alpha", "ln_data", "ln_beta", "ln_delta",
    "ln_k_lr", "lr_level", "lr_by_n", "lr_by_tokens", "lr_by_batch",
    "ln_k_batch", "batch_level", "batch_by_tokens",
)  # fmt: skip
"""The parameters of a fit, in the order of its vectors (`studies.scaling.likelihood`)."""
N_LAW = 6
"""Those of the law stand first."""
N_LR = 5
"""Then those of the learning rate; the rest are the batch's."""

LOWEST_WORD_LOSS_NATS = 3.0
"""Nats per token below which losses are of bytes or short tokens, or of models far larger than a
search trains."""


@dataclass(frozen=True)
class Prior:
    """A normal distribution: mean and standard deviation."""

    mean: float
    sd: float


@dataclass(frozen=True)
class Priors:
    """Priors of a fit; where a field is logarithmic its `sd` is a factor's logarithm."""

    entropy_nats: float | None = None
    """Centre of E, the loss of no model of any size. None: 1.8, the middle of 1.69 (Hoffmann et al.
    2022), 1.82 (Besiroglu et al. 2024) and 1.87 (Muennighoff et al. 2023), all with 32k to 50k
    tokens; where the losses are so low that this is no floor (bytes), 0.4 of the lowest."""
    entropy_sd: float = 0.1
    """Of ln E."""
    exponent: Prior = Prior(math.log(0.2), 0.5)
    """Of ln alpha and ln beta: 0.34 and 0.28 (Hoffmann), 0.35 and 0.37 (Besiroglu), 0.35 and 0.35
    (Muennighoff) with delta 1; with delta free 0.2 to 0.25 on points of Porian et al. 2024, whose
    lowest loss less 1.8 nats falls with C^-0.10, as with 0.2 and 0.2, from 1e16 to 3e19 FLOPs. At
    1e12 to 1e14 losses fall still more slowly (docs/experiments.md)."""
    level: Prior = Prior(0.0, 1.5)
    """Of the logarithms of both terms at the middle of the points, in units of the mean loss there
    less E, halved: as good as not known."""
    delta: Prior = Prior(math.log(0.45), 0.7)
    """Of ln delta, between 1 (Hoffmann) and 0.095 (Kaplan et al. 2020)."""
    k_lr: Prior = Prior(math.log(0.05), 0.8)
    """Of the logarithm of the nats lost at a learning rate a factor of e from the optimum, squared
    with distance: 0.67 nats at a batch and rate 20 to 40 times off at 1e16 (Porian et al. 2024)
    are 0.05 to 0.07."""
    k_batch: Prior = Prior(math.log(0.025), 0.8)
    """The same for tokens per step. *Assumption*: half as sharp as the rate's."""
    lr_level: Prior = Prior(0.0, 1.0)
    """Of ln lr* less StepLaw's (Li et al. 2025) at the middle of the points."""
    lr_by_n: Prior = Prior(-0.45, 0.25)
    """Exponent of N: -0.71 (StepLaw), -0.23 (Bjorck et al. 2024)."""
    lr_by_tokens: Prior = Prior(0.13, 0.2)
    """Exponent of the tokens while the batch follows StepLaw: 0.31 (StepLaw); Bjorck's -0.32 at a
    fixed batch is -0.03 here."""
    lr_by_batch: Prior = Prior(0.5, 0.2)
    """Exponent of the batch over StepLaw's: the square-root rule of Adam (Malladi et al. 2022)."""
    batch_level: Prior = Prior(0.0, 0.8)
    """Of the logarithm of the best tokens per step over StepLaw's."""
    batch_by_tokens: Prior = Prior(-0.09, 0.1)
    """Exponent beyond StepLaw's 0.571; published ones lie between 0.38 and 0.57."""
    noise: Prior = Prior(0.008, 4.0)
    """Relative scatter of runs around the law, and how many data points this is worth: seeds differ
    by 0.01 nats and more at 1e15, and no law of five numbers fits better than 0.4 %."""

    def floor(self, lowest_loss: float) -> Prior:
        """Prior of ln E where the lowest loss seen is `lowest_loss` nats."""
        if self.entropy_nats is not None:
            return Prior(math.log(self.entropy_nats), self.entropy_sd)
        if lowest_loss >= LOWEST_WORD_LOSS_NATS:
            return Prior(math.log(1.8), self.entropy_sd)
        return Prior(math.log(0.4 * lowest_loss), max(0.5, self.entropy_sd))

    def vector(self, lowest_loss: float, middle_loss: float) -> tuple[FloatArray, FloatArray]:
        """Means and standard deviations of all parameters, in the order of `NAMES`."""
        floor = self.floor(lowest_loss)
        half = math.log(max(0.1, middle_loss - math.exp(floor.mean)) / 2)
        level = Prior(half + self.level.mean, self.level.sd)
        order = (
            floor, level, self.exponent, level, self.exponent, self.delta,
            self.k_lr, self.lr_level, self.lr_by_n, self.lr_by_tokens, self.lr_by_batch,
            self.k_batch, self.batch_level, self.batch_by_tokens,
        )  # fmt: skip
        return np.array([p.mean for p in order]), np.array([p.sd for p in order])


def steplaw_ln_lr(ln_n: float, ln_tokens: float) -> float:
    """Logarithm of StepLaw's learning rate."""
    return math.log(steplaw_lr(math.exp(ln_n), math.exp(ln_tokens)))


def steplaw_ln_batch(ln_tokens: FloatArray) -> FloatArray:
    """Logarithm of StepLaw's tokens per step."""
    unit = math.log(steplaw_batch_tokens(1.0))
    slope = math.log(steplaw_batch_tokens(math.e)) - unit
    return unit + slope * ln_tokens
