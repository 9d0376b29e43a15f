"""Runs of a known world for the scaling fit: a law, mistuned rates and batches, noise."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from studies.scaling.fit_data import FitPoint
from studies.scaling.law import ScalingLaw, steplaw_batch_tokens, steplaw_lr

LAW = ScalingLaw(E=1.9, A=180.0, alpha=0.28, B=200.0, beta=0.25, delta=0.4)
RUNGS = (1e14, 3e14, 1e15)
SIZES = (2e6, 3e7)


def grid(
    law: ScalingLaw = LAW, budgets: Sequence[float] = (1e16, 3e16, 1e17), noise: float = 0.0,
    seed: int = 0,
) -> list[FitPoint]:  # fmt: skip
    """Well tuned runs of six sizes a budget, around the best one."""
    rng = np.random.default_rng(seed)
    runs = []
    for flops in budgets:
        for factor in (0.3, 0.5, 0.8, 1.25, 2.0, 3.0):
            size = float(round(law.best_params(flops) * factor))
            tokens = flops / 6 / size
            loss = law.loss(size, tokens) * float(np.exp(noise * rng.standard_normal()))
            runs.append(FitPoint(size, tokens, float(loss)))
    return runs


def study(
    law: ScalingLaw, seed: int, n: int = 40, rate_shift: float = 1.0, k_lr: float = 0.05
) -> list[FitPoint]:
    """Trials as a search makes them: sizes, rates and batches at random, at three rungs."""
    rng = np.random.default_rng(seed)
    runs = []
    for i in range(n):
        size = float(np.exp(rng.uniform(*np.log(SIZES))))
        tokens = RUNGS[i % 3] / 6 / size
        best_batch = steplaw_batch_tokens(tokens)
        batch = best_batch * float(np.exp(rng.uniform(-np.log(4), np.log(4))))
        rate = float(np.exp(rng.uniform(np.log(3e-3), np.log(3e-2))))
        best_rate = rate_shift * steplaw_lr(size, tokens) * (batch / best_batch) ** 0.5
        loss = (
            law.loss(size, tokens)
            + k_lr * np.log(rate / best_rate) ** 2
            + 0.02 * np.log(batch / best_batch) ** 2
            + 0.012 * rng.standard_normal()
        )
        runs.append(FitPoint(size, tokens, float(loss), rate, batch))
    return runs
