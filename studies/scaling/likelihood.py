"""The model behind the likelihood: log losses of data points from a vector of parameters.

    L = law(N, D) + k_lr · (ln lr − ln lr*)² + k_batch · (ln b − ln b*)²

`law` is a `ScalingLaw`. With n = ln(N / N0) and d = ln(D / D0) from the middle of
the points, and b' = ln b less StepLaw's batch for D,

    ln lr* = StepLaw at (N0, D0) + lr_level + lr_by_n · n + lr_by_tokens · d + lr_by_batch · b'
    b'*    = batch_level + batch_by_tokens · d

A term whose setting is not known (NaN) is zero: such runs are taken as well tuned.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from studies.scaling.fit_data import FitData
from studies.scaling.law import FloatArray, ScalingLaw
from studies.scaling.priors import N_LAW, N_LR, steplaw_ln_batch, steplaw_ln_lr

HUBER = 1.5
"""Residuals beyond so many standard deviations count linearly."""


def huber(z: FloatArray) -> FloatArray:
    """Huber's loss of absolute standardised residuals: the negative log likelihood of each."""
    return np.where(z > HUBER, HUBER * (z - HUBER / 2), z**2 / 2)


@dataclass(frozen=True)
class Centre:
    """The middle of the data points: logarithms of N0 and D0."""

    ln_n: float
    ln_tokens: float

    @classmethod
    def of(cls, points: FitData) -> Centre:
        """Means of the logarithms."""
        return cls(float(points.n_params.mean()), float(points.tokens.mean()))

    @property
    def ln_lr(self) -> float:
        """StepLaw's learning rate there."""
        return steplaw_ln_lr(self.ln_n, self.ln_tokens)


def law_log_loss(theta: FloatArray, n: FloatArray, d: FloatArray) -> FloatArray:
    """Log loss of well tuned runs, n = ln(N / N0) and d = ln(D / D0): (..., points)."""
    p = theta[..., :N_LAW, None]
    delta = np.exp(p[..., 5, :])
    size = (p[..., 1, :] - np.exp(p[..., 2, :]) * n) / delta
    data = (p[..., 3, :] - np.exp(p[..., 4, :]) * d) / delta
    return np.logaddexp(p[..., 0, :], delta * np.logaddexp(size, data))


def best_ln_batch(theta: FloatArray, centre: Centre, ln_tokens: FloatArray) -> FloatArray:
    """Logarithm of the best tokens per step: (..., points)."""
    p = theta[..., N_LAW + N_LR :, None]
    d = ln_tokens - centre.ln_tokens
    return steplaw_ln_batch(ln_tokens) + p[..., 1, :] + p[..., 2, :] * d


def best_ln_lr(
    theta: FloatArray, centre: Centre, ln_n: FloatArray, ln_tokens: FloatArray, ln_batch: FloatArray
) -> FloatArray:
    """Logarithm of the best peak rate: (..., points); a batch of NaN is taken at its optimum."""
    p = theta[..., N_LAW : N_LAW + N_LR, None]
    batch = np.where(np.isnan(ln_batch), best_ln_batch(theta, centre, ln_tokens), ln_batch)
    return (
        centre.ln_lr
        + p[..., 1, :]
        + p[..., 2, :] * (ln_n - centre.ln_n)
        + p[..., 3, :] * (ln_tokens - centre.ln_tokens)
        + p[..., 4, :] * (batch - steplaw_ln_batch(ln_tokens))
    )


def mistuning_nats(
    theta: FloatArray, centre: Centre, ln_n: FloatArray, ln_tokens: FloatArray, ln_lr: FloatArray,
    ln_batch: FloatArray,
) -> FloatArray | float:  # fmt: skip
    """What learning rate and batch cost over their optimum: (..., points); 0 where not known."""
    cost: FloatArray | float = 0.0
    if not np.isnan(ln_lr).all():
        off = ln_lr - best_ln_lr(theta, centre, ln_n, ln_tokens, ln_batch)
        cost = cost + np.exp(theta[..., N_LAW, None]) * np.where(np.isnan(off), 0.0, off) ** 2
    if not np.isnan(ln_batch).all():
        off = ln_batch - best_ln_batch(theta, centre, ln_tokens)
        curvature = np.exp(theta[..., N_LAW + N_LR, None])
        cost = cost + curvature * np.where(np.isnan(off), 0.0, off) ** 2
    return cost


def log_loss(theta: FloatArray, centre: Centre, points: FitData) -> FloatArray:
    """Log loss of points as they were tuned: (..., points)."""
    law = law_log_loss(theta, points.n_params - centre.ln_n, points.tokens - centre.ln_tokens)
    cost = mistuning_nats(
        theta, centre, points.n_params, points.tokens, points.max_lr, points.batch_tokens
    )
    return law if isinstance(cost, float) else np.log(np.exp(law) + cost)


def law_of(theta: FloatArray, centre: Centre) -> ScalingLaw:
    """The law's constants in N and D themselves."""
    ln_e, ln_size, ln_alpha, ln_data, ln_beta, ln_delta = (float(v) for v in theta[:N_LAW])
    alpha, beta = math.exp(ln_alpha), math.exp(ln_beta)
    return ScalingLaw(
        E=math.exp(ln_e),
        A=math.exp(ln_size + alpha * centre.ln_n),
        alpha=alpha,
        B=math.exp(ln_data + beta * centre.ln_tokens),
        beta=beta,
        delta=math.exp(ln_delta),
    )
