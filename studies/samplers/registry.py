"""Samplers, and the window of trials that they look at.

What a sampler does for one proposal grows with the number of trials it looks at: 12 ms at 100
trials and 33 ms at 1,000 for TPE with eight parameters on one core of a Xeon. In a long search it
looks at a window: the best trials and the latest ones.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

SamplerName = Literal["tpe", "gp", "random", "qmc", "grid", "law"]

WINDOW_TRIALS = 200
"""Trials that a sampler looks at, at least, once there are so many (*assumption*; TPE's group of
good trials stops growing at 25, reached with 250 trials)."""
WINDOW_BEST = 50
"""The best trials, which stay in the window however old they are (*assumption*)."""
WINDOW_STEP = 50
"""The window is chosen anew whenever the number of proposals reaches a multiple of this."""


def make_sampler(name: SamplerName, seed: int) -> BaseSampler:
    """A fresh sampler that draws from `seed`; grid and qmc have none."""
    if name == "random":
        return RandomSampler(seed=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if name == "gp":
            return optuna.samplers.GPSampler(seed=seed)
        return TPESampler(seed=seed)


def report(study: Study, number: int, step: int, value: float) -> None:
    """Enter an intermediate value of a running trial."""
    storage = study._storage
    trial_id = storage.get_trial_id_from_study_id_trial_number(study._study_id, number)
    storage.set_trial_intermediate_value(trial_id, step, value)


class TrialWindow:
    """The trials that a sampler looks at: a function of the number of proposals and the results.

    At number n that is every trial from b on, where b is the last multiple of `WINDOW_STEP` up to
    n, and of those before b the `WINDOW_BEST` best and the latest others, `WINDOW_TRIALS` together.
    """

    def __init__(self, distributions: Mapping[str, BaseDistribution]) -> None:
        """Begin without trials; the first `ask` brings them."""
        self._distributions = dict(distributions)
        self._study: Study | None = None
        self._first = 0
        self._places: dict[int, int] = {}
        """Where the study of the window has the trials of the search, by number."""

    def ask(
        self, number: int, sampler: BaseSampler, trials: Sequence[FrozenTrial]
    ) -> dict[str, Any]:
        """What a sampler draws for proposal `number`.

        Args:
            number: the proposal's number.
            sampler: fresh, seeded for this proposal.
            trials: all trials of the search, by number.
        """
        first = number - number % WINDOW_STEP if number >= WINDOW_TRIALS else 0
        if self._study is None or first != self._first:
            self._choose(first, trials)
        assert self._study is not None
        self._study.sampler = _KnownSpace(sampler, self._distributions)
        trial = self._study.ask(self._distributions)
        self._places[number] = trial.number
        return trial.params

    def add(self, number: int, trial: FrozenTrial) -> None:
        """Take up a trial, unless it came from `ask`."""
        if self._study is not None and number not in self._places:
            self._places[number] = len(self._study.get_trials(deepcopy=False))
            self._study.add_trial(trial)

    def report(self, number: int, step: int, value: float) -> None:
        """Take up an intermediate value."""
        if self._study is not None and number in self._places:
            report(self._study, self._places[number], step, value)

    def tell(self, number: int, value: float | None, state: TrialState) -> None:
        """Take up the end of a trial."""
        if self._study is not None and number in self._places:
            self._study.tell(self._places[number], value, state=state)

    def _choose(self, first: int, trials: Sequence[FrozenTrial]) -> None:
        old = [trial for trial in trials[:first] if trial.state != TrialState.FAIL]
        complete = [trial for trial in old if trial.state == TrialState.COMPLETE]
        best = sorted(complete, key=lambda trial: (trial.value, trial.number))[:WINDOW_BEST]
        chosen = {trial.number for trial in best}
        chosen |= {trial.number for trial in old if trial.state == TrialState.RUNNING}
        others = [trial for trial in old if trial.number not in chosen]
        chosen |= {trial.number for trial in others[-max(1, WINDOW_TRIALS - len(chosen)) :]}
        kept = [trial for trial in old if trial.number in chosen] + list(trials[first:])
        self._study, self._first = optuna.create_study(direction="minimize"), first
        self._study.add_trials(kept)
        self._places = {trial.number: place for place, trial in enumerate(kept)}


class _KnownSpace(BaseSampler):
    """Tells a sampler what varies, which it would work out from all trials at each proposal."""

    def __init__(self, sampler: BaseSampler, distributions: Mapping[str, BaseDistribution]) -> None:
        self._sampler = sampler
        self._varying = {name: d for name, d in sorted(distributions.items()) if not d.single()}

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        del study, trial
        return self._varying

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self._sampler.sample_relative(study, trial, search_space)

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        return self._sampler.sample_independent(study, trial, param_name, param_distribution)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        self._sampler.before_trial(study, trial)

    def after_trial(
        self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        self._sampler.after_trial(study, trial, state, values)
