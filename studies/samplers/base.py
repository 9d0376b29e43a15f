"""What all samplers know of a search, and how they differ from Optuna's.

Optuna does not store a sampler's random state, so a resumed study would propose something else
than an uninterrupted one. Here every proposal's draws begin anew from (seed, number).
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial

from budgetsweep.constraint import Limits
from studies.space.search_space import SearchSpace, Value
from trainer.config import RunConfig

NUMBER, BUDGET = "number", "budget_flops"
"""User attributes of a trial: the proposal's number in the search, for the sampler's study may hold
only some of its trials, and the training FLOPs that a run of it has."""


@dataclass(frozen=True)
class SearchProblem:
    """What a search looks for."""

    space: SearchSpace
    limits: Limits
    """What a trial must fit into, the search's budget among it."""
    base: Mapping[str, Any] = field(default_factory=dict)
    """Run settings that the search fixes."""
    seed: int = 0
    first: Mapping[str, Value] | None = None
    """Settings of proposal 0; None: the sampler's own."""
    promoted: Callable[[RunConfig], RunConfig | None] | None = None
    """What becomes of a trial at the budget whose loss is to be lowest; None: that of `limits`."""
    sizes_only: bool = False
    """A configuration only stands for its size; how it is tuned makes no difference."""

    def seed_of(self, number: int) -> int:
        """A 32-bit seed of one proposal, without collisions between neighbours."""
        return int(np.random.SeedSequence([self.seed, number]).generate_state(1)[0])


class ProblemSampler(BaseSampler):
    """A sampler that is made for one search, with what varies in it.

    Optuna's would work that out from all trials at each proposal.
    """

    def __init__(self, problem: SearchProblem) -> None:
        self.problem = problem
        distributions = problem.space.distributions()
        self._varying = {name: d for name, d in sorted(distributions.items()) if not d.single()}

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """What varies, whatever the trials so far had."""
        del study, trial
        return self._varying


class SettingsSampler(ProblemSampler, abc.ABC):
    """A sampler of our own, which names settings, all together."""

    @abc.abstractmethod
    def settings(self, study: Study, trial: FrozenTrial) -> Mapping[str, Value]:
        """Settings of all that varies, for the proposal that `trial` will be."""

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The settings as Optuna's distributions have them."""
        drawn = self.problem.space.encode(self.settings(study, trial))
        return {name: drawn[name] for name in search_space}

    def sample_independent(self, *args: Any, **kwargs: Any) -> Any:
        """Asked for by Optuna's base class, never called: all settings are drawn together."""
        raise NotImplementedError


class ReseededSampler(ProblemSampler):
    """One of Optuna's, made anew for every proposal."""

    def __init__(self, make: Callable[[int], BaseSampler], problem: SearchProblem) -> None:
        """`make` is what makes Optuna's sampler of a seed."""
        super().__init__(problem)
        self._make = make
        self._sampler = make(problem.seed)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Begin the draws of this proposal."""
        del study
        self._sampler = self._make(self.problem.seed_of(trial.user_attrs[NUMBER]))

    def sample_relative(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """All parameters together, or none."""
        return self._sampler.sample_relative(*args, **kwargs)

    def sample_independent(self, *args: Any, **kwargs: Any) -> Any:
        """One parameter, while there are too few trials to draw all together."""
        return self._sampler.sample_independent(*args, **kwargs)
