"""What a finished trial is worth to the sampler: one number, lower is better.

Where every trial has the whole budget and the best at that budget is wanted, it is the measured
loss. With rungs, losses of different budgets cannot be compared, and with `--for-scale` the loss at
a larger budget is wanted: then it is the loss that the trial's shape is predicted to reach there,
from the law of the trials finished up to it. That makes it a function of results alone, the same
after an interruption. The law sampler always gets measured losses with their budgets.
"""

from __future__ import annotations

from collections.abc import Iterable

from budgetsweep.errors import FitRefused
from studies.database.run_kind import RunKind
from studies.database.tables import Run, Study
from studies.scaling.fitted_runs import FittedRuns, PriorRuns
from studies.scaling.prediction import predict_run
from studies.scaling.study_fit import StudyLaw, fit_runs

REFIT_EACH_UNTIL = 50
REFIT_GROWTH = 1.1
"""Beyond so many points the law is fitted again when there are so many times as many: a fit of
hundreds of points takes longer than a proposal."""


class Objective:
    """Values finished trials, in the order in which they finished."""

    def __init__(self, study: Study, runs: Iterable[Run], prior: PriorRuns | None = None) -> None:
        """Begin with the trials finished already, and runs of prior studies."""
        self._study = study
        for_scale = study.settings.for_scale
        self.scale = 1.0 if for_scale is None else for_scale
        rungs = study.settings.rungs
        compares = for_scale is not None or len(rungs.of_trials) > 1
        self.is_predicted = compares and study.sampler != "law"
        prior = prior if self.is_predicted else None
        self._fitted = FittedRuns.of((), prior, known_settings=study.has_known_settings)
        self._places: dict[int, int] = {}
        """Runs there were when a run had finished, by its id."""
        self._fits: dict[int, StudyLaw | None] = {}
        """By the number of data points."""
        finished = [
            run for run in runs if run.kind == RunKind.TRIAL and run.finished_utc is not None
        ]
        for run in sorted(finished, key=lambda r: (r.finished_utc, r.id)):
            self.add(run)

    def add(self, run: Run) -> None:
        """A trial has finished: a data point for those that come after it."""
        if self.is_predicted and run.id not in self._places:
            self._fitted.add(run)
            self._places[run.id] = len(self._fitted.runs)

    def value(self, run: Run) -> float | None:
        """Worth of a complete trial; None: nothing can be said, samplers leave it out."""
        if not self.is_predicted:
            return run.val_loss_nats
        self.add(run)
        fitted = self._fit(points_fitted(self._places[run.id]))
        if fitted is not None:
            return predict_run(self._study, fitted, run, self.scale)
        return run.val_loss_nats if run.has_whole_budget and self.scale == 1.0 else None

    def _fit(self, n_points: int) -> StudyLaw | None:
        if n_points not in self._fits:
            try:
                self._fits[n_points] = fit_runs(self._fitted.first(n_points), must_reach=False)
            except FitRefused:
                self._fits[n_points] = None
        return self._fits[n_points]


def points_fitted(n: int) -> int:
    """Of the first `n` points so many are fitted: all of few, of many up to the last refit."""
    if n <= REFIT_EACH_UNTIL:
        return n
    refit = REFIT_EACH_UNTIL
    while (larger := int(refit * REFIT_GROWTH)) <= n:
        refit = larger
    return refit
