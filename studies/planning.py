"""How long a search will take, from a measurement of this device.

Measured are real optimiser steps of a few of the space's own configurations, on random tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from model.flops import Convention
from studies.execution.base import Executor
from studies.space.rungs import Rungs
from studies.space.sample import Sample, charge_per_token, eval_cost, evenly_by_cost
from trainer.config import RunConfig

SENSIBLE_SECONDS = 30 * 60.0
"""A search of more than a day is called very long; a suggested one takes so long."""
ABSURD_SECONDS = 24 * 3600.0


@dataclass(frozen=True)
class Speed:
    """Measured speed of a device: useful FLOPs per second against FLOPs per token."""

    flops_per_token: list[int]
    """Exact (`matmul`) training FLOPs per token of the measured configurations, ascending."""
    flops_per_second: list[float]

    def seconds(self, config: RunConfig) -> float:
        """Training time of a filled configuration, evaluation included."""
        per_token = config.flops_per_step(Convention.MATMUL) / config.tokens_per_step
        known, speeds = np.log(self.flops_per_token), np.log(self.flops_per_second)
        rate = float(np.exp(np.interp(np.log(per_token), known, speeds)))
        training = per_token * config.total_tokens / rate
        validation = eval_cost(config) * config.num_evals * (config.data.val_tokens or 0)
        return training * (1.0 + validation / config.total_tokens)


def measuring_seconds(budget_flops: int) -> float:
    """How long to measure a configuration: a second, less where a trial itself is short."""
    return min(1.0, max(0.05, budget_flops / 1e12))


def measure_speed(sample: Sample, executor: Executor, *, seconds_each: float) -> Speed | str:
    """Measure a cheap, a middling and an expensive configuration of the sample.

    Returns:
        The speed, or in one line why nothing could be measured.
    """
    if executor.device() is None:
        return "nothing is trained"
    found: dict[int, float] = {}
    reason = "no configuration is admitted"
    for pick in evenly_by_cost(sample):
        measured = executor.measure(pick.config, seconds_each)
        if measured.tokens_per_second is None:
            reason = measured.reason or "unknown"
            continue
        per_token = charge_per_token(pick.config)
        found[per_token] = per_token * measured.tokens_per_second
    if not found:
        return reason
    return Speed(sorted(found), [found[key] for key in sorted(found)])


@dataclass(frozen=True)
class TimePlan:
    """How long a search will take on this device, from measured speed."""

    trial_seconds: float
    """Mean over the space."""
    trial_seconds_range: tuple[float, float]
    search_seconds: float
    n_trials: int
    n_budgets: float
    """Cost of all runs, in budgets; `n_trials` where there is one rung."""
    n_workers: int
    sensible_budget_flops: int | None
    """Where the search is absurdly long: a budget that takes about half an hour instead."""


def plan_time(
    sample: Sample,
    speed: Speed,
    *,
    n_trials: int,
    n_workers: int,
    budget_flops: int,
    rungs: Rungs | None = None,
) -> TimePlan:
    """Time of a trial of the whole budget and of the whole search, all rungs included.

    Speed is measured with a worker's share of the cores, or while all workers of a GPU are at work:
    the search takes n_trials / n_workers times a trial.
    """
    seconds = np.array([speed.seconds(admitted.config) for admitted in sample.admitted])
    n_budgets = float((rungs or Rungs()).budgets(n_trials))
    total = float(seconds.mean()) * n_budgets / n_workers
    sensible = None
    if total > ABSURD_SECONDS:
        exact = budget_flops * SENSIBLE_SECONDS / total
        magnitude = 10 ** np.floor(np.log10(exact))
        sensible = max(1, int(np.floor(exact / magnitude) * magnitude))
    return TimePlan(
        trial_seconds=float(seconds.mean()),
        trial_seconds_range=(float(seconds.min()), float(seconds.max())),
        search_seconds=total,
        n_trials=n_trials,
        n_budgets=n_budgets,
        n_workers=n_workers,
        sensible_budget_flops=sensible,
    )
