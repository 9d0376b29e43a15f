"""How many trials run on each GPU at a time: as many as asked for, or as many as pay.

A small model leaves most of a large GPU idle: its kernels are over before the next is launched.
Whether a second process fills the gaps depends on the shapes, the GPU and the host, so it is
measured with configurations of the search's own space.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import geometric_mean

from studies.execution.local_pool import WorkerPool
from studies.planning import Sample, spread_by_cost
from studies.settings import SearchSettings, no_gpu_to_share

COUNTS = (1, 2, 4, 8)
MIN_GROWTH = 1.1
"""A count is taken if it trains at least so many times the tokens of the count before. Less is
within the noise of a second's measuring, and each worker takes memory (*assumption*)."""


@dataclass(frozen=True)
class Choice:
    """How many trials share a GPU, and what was measured."""

    count: int
    totals: dict[int, float]
    """Training tokens a second of all workers on the GPU together, by their number: the geometric
    mean over the configurations."""
    refusal: tuple[int, str] | None
    """The number that could not be measured, and why in a few words."""

    def line(self) -> str:
        """All of it in one line."""
        told = [f"{count} → {float(f'{total:.3g}'):,.0f}" for count, total in self.totals.items()]
        if told:
            told[0] += " tokens/s"
        if self.refusal is not None:
            count, why = self.refusal
            told.append(f"{count} not measured ({why})")
        used = "1 is used" if self.count == 1 else f"{self.count} are used"
        return f"trials per GPU: {', '.join(told)}: {used}"


def choose(measure: Callable[[int], list[float] | str]) -> Choice:
    """Try more and more workers, until one step up brings less than a tenth.

    Args:
        measure: of a number of workers, the tokens a second of all of them together, for each of
            the same configurations; or in a few words why that cannot be had.

    Returns:
        The last number that was worth its step; 1 where nothing can be measured.
    """
    chosen = 1
    totals: dict[int, float] = {}
    for count in COUNTS:
        measured = measure(count)
        if isinstance(measured, str):
            return Choice(chosen, totals, (count, measured))
        # The ratio of these means is the mean of the configurations' ratios.
        totals[count] = geometric_mean(measured)
        if count > 1 and totals[count] / totals[chosen] < MIN_GROWTH:
            break
        chosen = count
    return Choice(chosen, totals, None)


def require_device(settings: SearchSettings, pool: WorkerPool) -> None:
    """Refuse a device that is not there; waits for the first worker.

    Raises:
        ConfigError: there is no such device, or a number of trials per GPU is asked for and it is
            no GPU.
        StudyError: the first worker did not start.
    """
    wanted, kind = settings.trials_per_gpu, pool.device().kind
    if isinstance(wanted, int) and kind != "cuda":
        raise no_gpu_to_share(wanted, settings.device)


def share_gpus(
    settings: SearchSettings,
    pool: WorkerPool,
    sample: Callable[[], Sample],
    *,
    seconds_each: float,
    should_stop: Callable[[], bool] = lambda: False,
) -> str | None:
    """Give each GPU its number of workers, which decides what memory a trial may take.

    Args:
        settings: what is asked for.
        pool: not started but for its first worker.
        sample: configurations that fit one worker alone; called only where they are measured.
        seconds_each: measuring time of a configuration and a number of workers.
        should_stop: True: measure no more.

    Returns:
        What there is to say of it, in one line.

    Raises:
        ConfigError: a number is asked for, and the device is no GPU.
        StudyError: the first worker did not start.
    """
    wanted = settings.trials_per_gpu
    if wanted is None:
        return None
    require_device(settings, pool)
    if pool.device().kind != "cuda":
        return "trials per GPU: there is no GPU to share, 1 worker is used"
    if wanted != "auto":
        pool.share_gpus(wanted)
        return None
    choice = choose(_measurer(pool, sample(), seconds_each, should_stop))
    pool.share_gpus(choice.count)
    return choice.line()


def _measurer(
    pool: WorkerPool, sample: Sample, seconds_each: float, should_stop: Callable[[], bool]
) -> Callable[[int], list[float] | str]:
    largest = max((admitted.memory_bytes or 0 for admitted in sample.admitted), default=0)
    configs = [admitted.config for admitted in spread_by_cost(sample)]

    def measure(count: int) -> list[float] | str:
        if not configs:
            return "no configuration is admitted"
        share = pool.device_shared_by(count).memory_bytes
        if largest > share:
            return (
                f"a sampled configuration needs {largest / 2**30:.3g} GiB, a share has "
                f"{share / 2**30:.3g} GiB"
            )
        totals: list[float] = []
        for config in configs:
            if should_stop():
                return "interrupted"
            speeds = pool.measure_together(config, seconds_each, count)
            if isinstance(speeds, str):
                return speeds
            totals.append(sum(speeds))
        return totals

    return measure
