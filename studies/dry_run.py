"""A search looked at before it is begun: what it would propose and how long it would take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from budgetsweep.constraint import Limits
from studies.planning import Speed, TimePlan, measure_speed, measuring_seconds, plan_time
from studies.settings import SearchSettings
from studies.space.sample import Sample, sample_space
from studies.space.search_space import SearchSpace
from trainer.data.facts import DataFacts


@dataclass(frozen=True)
class DryRun:
    """What a search would propose, nothing trained."""

    settings: SearchSettings
    space: SearchSpace
    sample: Sample
    speed: Speed | str
    plan: TimePlan | None


def dry_run(
    settings: SearchSettings, n: int, on_progress: Callable[[int], None] | None = None
) -> DryRun:
    """Sample the space, ask the constraint and measure the device; write and train nothing."""
    space = settings.resolved_space()
    base = settings.base()
    with settings.backend.executor(settings.asked_workers) as executor:
        limits = Limits(
            settings.budget_flops,
            settings.convention,
            executor.device(),
            DataFacts(
                settings.data.source, "", "", settings.data.train_tokens, settings.data.val_tokens
            ),
        )
        sample = sample_space(space, base, limits, n, settings.seed, on_progress)
        if not sample.admitted:
            return DryRun(settings, space, sample, "nothing is admitted", None)
        seconds = measuring_seconds(settings.budget_flops)
        speed = measure_speed(sample, executor, seconds_each=seconds)
        n_workers = executor.n_workers
    plan = None
    if isinstance(speed, Speed):
        plan = plan_time(
            sample, speed, n_trials=settings.trials, n_workers=n_workers,
            budget_flops=settings.budget_flops, rungs=settings.rungs,
        )  # fmt: skip
    return DryRun(settings, space, sample, speed, plan)
