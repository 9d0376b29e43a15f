"""The samplers by the names that `--sampler` takes."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable

from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler

from studies.samplers.base import ProblemSampler, ReseededSampler, SearchProblem
from studies.samplers.grid import GridSampler
from studies.samplers.law import LawSampler
from studies.samplers.qmc import QmcSampler
from studies.space.search_space import SamplerName


def _optunas(sampler: Callable[..., BaseSampler]) -> Callable[[SearchProblem], ProblemSampler]:
    def make(seed: int) -> BaseSampler:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            return sampler(seed=seed)

    return functools.partial(ReseededSampler, make)


SAMPLERS: dict[SamplerName, Callable[[SearchProblem], ProblemSampler]] = {
    "tpe": _optunas(TPESampler),
    "gp": _optunas(GPSampler),
    "random": _optunas(RandomSampler),
    "qmc": QmcSampler,
    "grid": GridSampler,
    "law": LawSampler,
}
"""Each makes the sampler of a search."""
