"""What the settings beside size, tokens, learning rate and batch change of a run's loss.

The law knows four numbers of a run. Its residuals are explained, as far as the trials allow, by a
line in each other setting that varies: a Bayesian linear regression with priors that say "hardly
anything", but for the context: a token's loss falls with the tokens before it, so short windows
cost about c / T nats at T tokens. Such a cost stays at the larger budget, where a law without it
would promote the shortest windows, which afford the most tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from studies.scaling.law import FloatArray
from trainer.config import RunConfig

CONTEXT_NATS = 8.0
"""Mean of c, from both ends of the range that it is needed for: our own models had about 0 at 6.2
nats and 2 at 5.6 (one run each, positions of a window compared); the fits of Kaplan et al. 2020
(figure 20) to the loss at each position, 3.4 + 4.0 · t^-0.56 for 3 M parameters, come to about 40
between 64 and 256 tokens. A good model makes more of what it has read."""
CONTEXT_SD = 6.0
EFFECT_SD_NATS = 0.04
"""Standard deviation of what any other setting changes over one of its own (*assumption*)."""

COVARIATES: dict[str, Callable[[RunConfig], float]] = {
    "context": lambda c: 1.0 / c.seq_len,
    "head samples": lambda c: math.log(c.head_samples) if c.head_samples else 0.0,
    "weight decay": lambda c: c.weight_decay,
    "beta2": lambda c: math.log(max(1.0 - c.beta2, 1e-6)),
    "warm-up": lambda c: math.log(max(c.warmup_steps, 1) / c.steps),
    "last rate": lambda c: c.final_lr / c.max_lr,
    "head dimension": lambda c: math.log(c.model.head_dim),
    "aspect": lambda c: math.log(c.model.n_embd / c.model.depth),
    "dropout": lambda c: c.model.p_dropout,
}
"""Each setting as the number in which its effect is taken as linear."""


@dataclass(frozen=True)
class CovariateEffects:
    """Lines through the residuals of a law: zero at the mean of its runs."""

    names: tuple[str, ...]
    centre: FloatArray
    scale: FloatArray
    """Standard deviations of the settings among the runs."""
    mean: FloatArray
    covariance: FloatArray
    lowest: FloatArray
    highest: FloatArray
    """Settings among the runs: beyond them a line says no more than at its end."""

    def of(self, config: RunConfig) -> tuple[float, float]:
        """Nats that a run's settings add, and how uncertain that is (standard deviation)."""
        values = np.array([COVARIATES[name](config) for name in self.names])
        values = np.clip(values, self.lowest, self.highest)
        row = (values - self.centre) / self.scale
        return float(row @ self.mean), math.sqrt(max(0.0, float(row @ self.covariance @ row)))


_NOTHING = np.zeros(0)
NO_EFFECTS = CovariateEffects(
    (), _NOTHING, _NOTHING, _NOTHING, np.zeros((0, 0)), _NOTHING, _NOTHING
)


def fit_covariates(
    configs: Sequence[RunConfig], residuals: FloatArray, sds: FloatArray
) -> CovariateEffects:
    """Explain residuals of runs (measured less expected loss, nats) by their settings.

    `sds` says how far each may lie off all the same, in nats.
    """
    table = {name: np.array([value(c) for c in configs]) for name, value in COVARIATES.items()}
    names = tuple(name for name, column in table.items() if np.ptp(column) > 1e-9)
    if not names:
        return NO_EFFECTS
    values = np.stack([table[name] for name in names], axis=1)
    centre, scale = values.mean(axis=0), values.std(axis=0)
    prior_mean, prior_sd = np.zeros(len(names)), np.full(len(names), EFFECT_SD_NATS)
    if "context" in names:
        at = names.index("context")
        prior_mean[at], prior_sd[at] = CONTEXT_NATS * scale[at], CONTEXT_SD * scale[at]
    rows = (values - centre) / scale / sds[:, None]
    covariance = np.linalg.inv(rows.T @ rows + np.diag(prior_sd**-2.0))
    mean = covariance @ (rows.T @ (residuals / sds) + prior_mean / prior_sd**2)
    ends = values.min(axis=0), values.max(axis=0)
    return CovariateEffects(names, centre, scale, mean, covariance, *ends)
