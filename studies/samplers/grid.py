"""Grid search: every point of a finite space once, in a shuffled order."""

from __future__ import annotations

import numpy as np
from optuna.study import Study
from optuna.trial import FrozenTrial

from budgetsweep.errors import ConfigError
from studies.samplers.base import NUMBER, SearchProblem, SettingsSampler
from studies.space.search_space import Value

MOST_POINTS = 1_000_000


class SpaceExhausted(Exception):
    """Every point of the grid has been proposed."""


class GridSampler(SettingsSampler):
    """Proposal n is point n of the order; a given first proposal comes before them."""

    def __init__(self, problem: SearchProblem) -> None:
        """Shuffle the points, so that an early stop has seen every region.

        Raises:
            ConfigError: a continuous parameter, or too many points.
        """
        super().__init__(problem)
        for name, parameter in problem.space.parameters.items():
            if parameter.count() is None:
                raise ConfigError(
                    f"--sampler grid: {name} is continuous; give it values: [...] or a step, "
                    "or use --sampler qmc"
                )
        size = problem.space.size()
        assert size is not None
        if size > MOST_POINTS:
            raise ConfigError(
                f"--sampler grid: the space has {size:,} points; use --sampler qmc or fewer values"
            )
        self._order = np.random.default_rng(problem.seed).permutation(size)

    def settings(self, study: Study, trial: FrozenTrial) -> dict[str, Value]:
        """The point's settings.

        Raises:
            SpaceExhausted: there are no more.
        """
        del study
        index = trial.user_attrs[NUMBER] - (self.problem.first is not None)
        if index >= len(self._order):
            raise SpaceExhausted
        space = self.problem.space
        choices = {name: space.parameters[name].all_values() for name in space.distributions()}
        point = np.unravel_index(self._order[index], [len(values) for values in choices.values()])
        return {
            name: values[int(i)] for (name, values), i in zip(choices.items(), point, strict=True)
        }
