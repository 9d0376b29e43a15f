"""Which trial to promote: the one that measured best, or the one predicted to be best."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from budgetsweep.errors import StudyError
from studies.database.run_kind import RunKind
from studies.database.store import Store
from studies.database.tables import Run, Study
from studies.scaling.prediction import StudyFit
from trainer.config import RunConfig
from trainer.events import RunStatus

Select = Literal["measured", "predicted"]


@dataclass(frozen=True)
class Selection:
    """The trial to promote, and why this one."""

    trial: Run
    selected_by: str
    """`measured`, `predicted` or `trial` (named by the user)."""
    fit: StudyFit


def select_trial(
    store: Store, study: Study, fit: StudyFit, number: int | None, wanted: Select | None
) -> Selection:
    """Choose a complete trial: that of a number, else as wanted, else by `fit` where it can.

    Raises:
        StudyError: no such trial, or none that is complete, or there is no prediction.
    """
    trials = {run.number: run for run in store.runs(study.id, kind=RunKind.TRIAL)}
    if number is not None:
        if number not in trials:
            raise StudyError(
                f"study {study.name!r} has no trial {number}; `budgetsweep status` lists them"
            )
        if trials[number].status != RunStatus.COMPLETE:
            raise StudyError(f"trial {number} is {trials[number].status}; choose a complete one")
        return Selection(trials[number], "trial", fit)
    if wanted != "measured" and fit.candidates:
        return Selection(trials[fit.candidates[0].number], "predicted", fit)
    if wanted == "predicted":
        raise StudyError(f"--select predicted: {fit.refusal or 'no trial can be promoted'}")
    best = store.best_run(study.id)
    if best is None:
        raise StudyError(
            f"study {study.name!r} has no complete trial yet; run `budgetsweep search` first"
        )
    return Selection(best, "measured", fit)


def record_prediction(
    store: Store, study: Study, run: Run, config: RunConfig, selection: Selection
) -> None:
    """Record what is predicted of a run before it trains; without a law only why there is none.

    `config` is the run's with its steps filled.
    """
    fit = selection.fit
    fit_id = store.add_fit(study.id, scale=fit.scale, refusal=fit.refusal, record=fit.to_dict())
    predicted = fit.predict(config)
    if predicted is None:
        return
    store.add_prediction(
        run,
        fit_id=fit_id,
        selected_by=selection.selected_by,
        loss_nats=(predicted.loss_nats, predicted.low_nats, predicted.high_nats),
        level=predicted.level,
        extrapolation=predicted.extrapolation.flops_ratio,
    )
