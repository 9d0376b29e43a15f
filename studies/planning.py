"""What a search will need, found by sampling its space: data, time, memory, admitted share.

Nothing is trained. Times rest on a measurement of this device: real optimiser steps of a few of
the space's own configurations, on random tokens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from budgetsweep.constraint import (
    MIN_VALIDATION_WINDOWS,
    Admitted,
    Limits,
    Rejected,
    admit,
    charge_per_step,
)
from budgetsweep.errors import Reason
from studies.execution.worker import Measured
from studies.space.rungs import Rungs
from studies.space.search_space import SearchSpace
from trainer.config import RunConfig

EVAL_SHARE = 0.1
"""All validation passes of a run together take at most this share of its time."""
SENSIBLE_SECONDS = 30 * 60.0
"""A search that takes longer than a day is called absurd; a sensible one takes so long."""
ABSURD_SECONDS = 24 * 3600.0
PLAN_SAMPLES = 256


@dataclass(frozen=True)
class Sample:
    """Random proposals of a space and what the constraint said of them."""

    admitted: list[Admitted]
    rejected: list[Rejected]

    @property
    def admitted_share(self) -> float:
        """Share admitted, 0 to 1."""
        total = len(self.admitted) + len(self.rejected)
        return len(self.admitted) / total if total else 0.0

    def reasons(self) -> Counter[Reason]:
        """How often each reason refused."""
        return Counter(rejection.reason for rejection in self.rejected)

    def example(self, reason: Reason) -> str:
        """One line of a proposal that was refused so."""
        return next(r.detail for r in self.rejected if r.reason == reason)


def sample_space(
    space: SearchSpace,
    base: Mapping[str, Any],
    limits: Limits,
    n: int,
    seed: int,
    on_progress: Callable[[int], None] | None = None,
) -> Sample:
    """Draw `n` proposals uniformly and ask the constraint about each."""
    rng = np.random.default_rng(seed)
    admitted: list[Admitted] = []
    rejected: list[Rejected] = []
    for index in range(n):
        answer = admit(space.run_data(space.random_settings(rng), base), limits)
        if isinstance(answer, Admitted):
            admitted.append(answer)
        else:
            rejected.append(answer)
        if on_progress is not None and index % 100 == 99:
            on_progress(index + 1)
    return Sample(admitted, rejected)


def wanted_train_tokens(sample: Sample) -> int | None:
    """Training tokens that the cheapest shape can use in one pass; None: all there are."""
    wanted = [admitted.config.wanted_train_tokens for admitted in sample.admitted]
    return None if None in wanted else max(number for number in wanted if number is not None)


def wanted_val_tokens(sample: Sample) -> int:
    """Validation tokens such that even the shortest run spends a tenth of its time on them.

    Given n passes at c times the training cost a token (`eval_cost`), solve
    n · c · val_tokens = 0.1 · train_tokens. Runs so short that this gives fewer windows than the
    constraint demands get that many all the same.
    """
    configs = [admitted.config for admitted in sample.admitted]
    affordable = min(int(EVAL_SHARE / eval_cost(c) * c.total_tokens / c.num_evals) for c in configs)
    longest = max(config.tokens_per_sequence for config in configs)
    return max(affordable, MIN_VALIDATION_WINDOWS * longest)


def wanted_val_pairs(sample: Sample) -> int:
    """`wanted_val_tokens` for an encoder-decoder: a pair costs the same in both passes."""
    configs = [admitted.config for admitted in sample.admitted]
    affordable = min(
        int(EVAL_SHARE / eval_cost(c) * c.steps * c.sequences_per_step / c.num_evals)
        for c in configs
    )
    return max(affordable, MIN_VALIDATION_WINDOWS)


def eval_cost(config: RunConfig) -> float:
    """Cost of validating a token, of training it.

    A third, forward without backward; more where training samples the head: validation never does.
    """
    if config.head_samples is None:
        return 1.0 / 3.0
    whole = config.with_changes(head_samples=None)
    return whole.flops_per_step("matmul") / (3.0 * config.flops_per_step("matmul"))


@dataclass(frozen=True)
class Speed:
    """Measured speed of a device: useful FLOPs a second against FLOPs a token."""

    flops_per_token: list[int]
    """Exact (`matmul`) training FLOPs a token of the measured configurations, ascending."""
    flops_per_second: list[float]
    device_name: str

    def seconds(self, config: RunConfig) -> float:
        """Training time of a filled configuration, evaluation included."""
        per_token = charge_per_step(config, "matmul") / config.tokens_per_step
        rate = float(
            np.exp(
                np.interp(
                    np.log(per_token), np.log(self.flops_per_token), np.log(self.flops_per_second)
                )
            )
        )
        training = per_token * config.total_tokens / rate
        validation = eval_cost(config) * config.num_evals * (config.data.val_tokens or 0)
        return training * (1.0 + validation / config.total_tokens)


def measuring_seconds(budget_flops: int) -> float:
    """How long to measure a configuration: a second, less where a trial itself is short."""
    return min(1.0, max(0.05, budget_flops / 1e12))


def measure_speed(
    sample: Sample,
    measure: Callable[[RunConfig, float], Measured],
    device_name: str,
    *,
    seconds_each: float,
) -> Speed | str:
    """Measure a cheap, a middling and a dear configuration of the sample.

    Returns:
        The speed, or in one line why nothing could be measured.
    """
    found: dict[int, float] = {}
    reason = "no configuration is admitted"
    for pick in cheap_to_dear(sample):
        measured = measure(pick.config, seconds_each)
        if measured.tokens_per_second is None:
            reason = measured.reason or "unknown"
            continue
        per_token = charge_per_token(pick.config)
        found[per_token] = per_token * measured.tokens_per_second
    if not found:
        return reason
    return Speed(sorted(found), [found[key] for key in sorted(found)], device_name)


def cheap_to_dear(sample: Sample, count: int = 3) -> list[Admitted]:
    """At most `count` configurations of a sample, evenly from cheap to dear by FLOPs a token."""
    ordered = sorted(sample.admitted, key=lambda a: charge_per_token(a.config))
    count = min(count, len(ordered))
    return [ordered[round(q)] for q in np.linspace(0, len(ordered) - 1, count)]


def charge_per_token(config: RunConfig) -> int:
    """Exact training FLOPs a token."""
    return charge_per_step(config, "matmul") // config.tokens_per_step


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

    Workers on one CPU share its cores: the measured speed is that of one worker with its share of
    the threads, so the search takes n_trials / n_workers times a trial. So it does on GPUs, where
    the speed is measured while all workers of one are at work.
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
