"""A search looked at before it is begun: what it would propose and how long it would take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from budgetsweep.constraint import Limits
from studies.planning import (
    PLAN_SAMPLES,
    Sample,
    Speed,
    TimePlan,
    measure_speed,
    measuring_seconds,
    plan_time,
    sample_space,
)
from studies.search import worker_pool
from studies.settings import SearchSettings
from studies.sharing import share_gpus
from studies.space.search_space import SearchSpace


@dataclass(frozen=True)
class DryRun:
    """What a search would propose, nothing trained."""

    settings: SearchSettings
    space: SearchSpace
    sample: Sample
    speed: Speed | str
    plan: TimePlan | None
    sharing: str | None = None
    """What there is to say of the trials per GPU."""


def dry_run(
    settings: SearchSettings, n: int, on_progress: Callable[[int], None] | None = None
) -> DryRun:
    """Sample the space, ask the constraint and measure the device; write and train nothing."""
    space = settings.resolved_space()
    base = settings.base()
    if settings.world is not None:
        limits = Limits(settings.budget_flops, settings.convention)
        sample = sample_space(space, base, limits, n, settings.seed, on_progress)
        return DryRun(settings, space, sample, "a run that nobody trains takes none", None)
    seconds = measuring_seconds(settings.budget_flops)
    with worker_pool(settings) as pool:
        limits = Limits(
            settings.budget_flops,
            settings.convention,
            pool.device(),
            val_tokens=settings.data.val_tokens,
            train_tokens=settings.data.train_tokens,
        )
        told = share_gpus(
            settings,
            pool,
            lambda: sample_space(space, base, limits, PLAN_SAMPLES, settings.seed),
            seconds_each=seconds,
        )
        shared = replace(limits, device=pool.device_per_worker())
        sample = sample_space(space, base, shared, n, settings.seed, on_progress)
        if not sample.admitted:
            return DryRun(settings, space, sample, "nothing is admitted", None, told)
        speed = measure_speed(sample, pool.measure_share, seconds_each=seconds)
    plan = None
    if isinstance(speed, Speed):
        plan = plan_time(
            sample, speed, n_trials=settings.trials, n_workers=pool.n_workers,
            budget_flops=settings.budget_flops, rungs=settings.rungs,
        )  # fmt: skip
    return DryRun(settings, space, sample, speed, plan, told)
