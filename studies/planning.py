"""How long a search will take, from a measurement of this device.

Measured are real optimiser steps of a few of the space's own configurations, on random tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from budgetsweep.constraint import Limits
from model.flops import Convention
from studies.execution.base import Executor
from studies.settings import SearchSettings
from studies.space.sample import Sample, charge_per_token, eval_cost, evenly_by_cost, sample_space
from trainer.config import RunConfig
from trainer.data.facts import DataFacts

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


def measure_speed(sample: Sample, executor: Executor, *, seconds_each: float) -> Speed | str:
    """Measure three configurations, cheap to expensive; a text says why that was not possible."""
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

    speed: Speed
    trial_seconds: float
    """Mean over the space."""
    trial_seconds_range: tuple[float, float]
    search_seconds: float
    n_workers: int
    sensible_budget_flops: int | None
    """Where the search is absurdly long: a budget that takes about half an hour instead."""


def plan_time(settings: SearchSettings, sample: Sample, executor: Executor) -> TimePlan | str:
    """Time of a trial of the whole budget and of the whole search, all rungs included.

    Speed is measured with a worker's share of the cores, or while all workers of a GPU are at work:
    the search takes trials / workers times a trial. A text says why nothing could be measured.
    """
    # A second for each configuration, less where a trial itself is short.
    seconds_each = min(1.0, max(0.05, settings.budget_flops / 1e12))
    speed = measure_speed(sample, executor, seconds_each=seconds_each)
    if isinstance(speed, str):
        return speed
    seconds = np.array([speed.seconds(admitted.config) for admitted in sample.admitted])
    n_budgets = float(settings.rungs.budgets(settings.trials))
    total = float(seconds.mean()) * n_budgets / executor.n_workers
    sensible = None
    if total > ABSURD_SECONDS:
        exact = settings.budget_flops * SENSIBLE_SECONDS / total
        magnitude = 10 ** np.floor(np.log10(exact))
        sensible = max(1, int(np.floor(exact / magnitude) * magnitude))
    return TimePlan(
        speed=speed,
        trial_seconds=float(seconds.mean()),
        trial_seconds_range=(float(seconds.min()), float(seconds.max())),
        search_seconds=total,
        n_workers=executor.n_workers,
        sensible_budget_flops=sensible,
    )


def dry_run(settings: SearchSettings, n: int) -> tuple[Sample, TimePlan | str]:
    """What a search would propose (`n` times) and how long it would take; nothing is written."""
    space = settings.resolved_space()
    with settings.backend.executor(settings.asked_workers) as executor:
        data = settings.data
        facts = DataFacts(data.source, "", "", data.train_tokens, data.val_tokens)
        limits = Limits(settings.budget_flops, settings.convention, executor.device(), facts)
        sample = sample_space(space, settings.base(), limits, n, settings.seed)
        if not sample.admitted:
            return sample, "nothing is admitted"
        return sample, plan_time(settings, sample, executor)
