"""The window of trials that a sampler looks at.

What a sampler does for one proposal grows with the number of trials it looks at: 12 ms at 100
trials and 33 ms at 1,000 for TPE with eight parameters on one core of a Xeon. In a long search it
looks at a window: the best trials and the latest ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import optuna
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from studies.samplers.base import ProblemSampler, SearchProblem

WINDOW_TRIALS = 200
"""Trials that a sampler looks at, at least, once there are so many (*assumption*; TPE's group of
good trials stops growing at 25, reached with 250 trials)."""
WINDOW_BEST = 50
"""The best trials, which stay in the window however old they are (*assumption*)."""
WINDOW_STEP = 50
"""The window is chosen anew whenever the number of proposals reaches a multiple of this."""


class TrialWindow:
    """The trials that a sampler looks at: a function of the number of proposals and the results.

    At number n that is every trial from b on, where b is the last multiple of `WINDOW_STEP` up to
    n, and of those before b the `WINDOW_BEST` best and the latest others, `WINDOW_TRIALS` together.
    """

    def __init__(self, problem: SearchProblem) -> None:
        """Begin without trials; the first `ask` brings them."""
        self._distributions = problem.space.distributions()
        self._study: Study | None = None
        self._first = 0
        self._places: dict[int, int] = {}
        """Where the study of the window has the trials of the search, by number."""

    def ask(
        self,
        number: int,
        sampler: ProblemSampler,
        trials: Sequence[FrozenTrial],
        attributes: Mapping[str, Any],
        params: Mapping[str, Any],
    ) -> dict[str, Any]:
        """What a sampler draws for proposal `number`, with all `trials` of the search by number.

        It sees the proposal's `attributes`; `params` are not its to choose.
        """
        first = number - number % WINDOW_STEP if number >= WINDOW_TRIALS else 0
        if self._study is None or first != self._first:
            self._choose(first, trials)
        assert self._study is not None
        self._study.sampler = sampler
        self._study.enqueue_trial(dict(params), user_attrs=dict(attributes))
        trial = self._study.ask(self._distributions)
        self._places[number] = trial.number
        return trial.params

    def add(self, number: int, trial: FrozenTrial) -> None:
        """Take up a trial, unless it came from `ask`."""
        if self._study is not None and number not in self._places:
            self._places[number] = len(self._study.get_trials(deepcopy=False))
            self._study.add_trial(trial)

    def change(self, number: int, change: Callable[[Study, int], object]) -> None:
        """Take up what has become of a trial."""
        if self._study is not None and number in self._places:
            change(self._study, self._places[number])

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
