"""Quasi-random search: the points of one scrambled Sobol sequence, each in its turn."""

from __future__ import annotations

import math
import warnings

import numpy as np
from optuna.study import Study
from optuna.trial import FrozenTrial

from studies.samplers.base import NUMBER, SettingsSampler
from studies.space.search_space import Value


class QmcSampler(SettingsSampler):
    """Proposal n is point n of the sequence.

    Optuna's counts the points that it has drawn in the study, which a resumed one would repeat.
    """

    def settings(self, study: Study, trial: FrozenTrial) -> dict[str, Value]:
        """The point's settings."""
        from scipy.stats import qmc

        del study
        number = trial.user_attrs[NUMBER]
        space = self.problem.space
        names = list(space.distributions())
        sobol = qmc.Sobol(len(names), scramble=True, rng=np.random.default_rng(self.problem.seed))
        if number:
            sobol.fast_forward(number)
        with warnings.catch_warnings():  # one point at a time is not a power of two, as intended
            warnings.simplefilter("ignore", UserWarning)
            point = sobol.random(1)[0]
        below_one = math.nextafter(1.0, 0.0)
        return {
            name: space.parameters[name].setting_at(min(float(q), below_one))
            for name, q in zip(names, point, strict=True)
        }
