"""What a study predicts of a larger budget, which trial it promotes, and what is recorded."""

from __future__ import annotations

import json
from typing import Any

import pytest

from budgetsweep.errors import StudyError
from studies.database.store import IllegalChangeError, Store
from studies.database.tables import Study
from studies.promotion.selection import record_prediction, select_trial
from studies.scaling.fitted_runs import FittedRuns
from studies.scaling.prediction import fit_study
from studies.scaling.result import ScalingFit
from tests.support.lawful_runs import BUDGET, LAW, enter, fill_study, trial_config
from tests.support.tiny_studies import add_run


def test_the_law_is_found_and_the_larger_budget_predicted(store: Store, study: Study) -> None:
    runs = fill_study(store, study, 36)
    fit = fit_study(study, runs, 100.0)
    assert fit.refusal is None
    assert fit.law is not None
    assert len(fit.runs.runs) == 36
    best = fit.candidates[0]
    assert best.low_nats < best.loss_nats < best.high_nats
    # The truth at the promoted budget, learning rate and batch at their best.
    truth = float(LAW.loss(float(best.n_params), float(best.tokens)))
    assert best.low_nats < truth < best.high_nats
    assert best.loss_nats == pytest.approx(truth, abs=0.2)


def test_the_two_answers_differ_and_tell_their_price(store: Store, study: Study) -> None:
    fit = fit_study(study, fill_study(store, study, 36), 100.0)
    choice = fit.choice
    assert choice is not None
    sizes = {c.number: c.n_params for c in fit.candidates}
    assert sizes[choice.predicted] > sizes[choice.measured]
    assert choice.measured_costs_nats > 0
    assert choice.measured_costs_low < choice.measured_costs_nats < choice.measured_costs_high
    assert choice.predicted_costs_nats > 0
    selected = {
        how: select_trial(store, study, fit, None, how).trial.number
        for how in (None, "predicted", "measured")
    }
    assert selected == {
        None: choice.predicted, "predicted": choice.predicted, "measured": choice.measured,
    }  # fmt: skip


def test_measured_best_is_of_the_whole_budget_only(store: Store, study: Study) -> None:
    fill_study(store, study, 6)
    cheat = trial_config(64, BUDGET * 10)
    enter(store, study, 50, cheat, scale=10.0, loss_nats=1.0)
    best = store.best_run(study.id)
    assert best is not None
    assert best.scale == 1.0


def test_few_runs_are_refused_and_the_measured_best_promoted(store: Store, study: Study) -> None:
    runs = fill_study(store, study, 3)
    fit = fit_study(study, runs, 100.0)
    assert fit.refusal is not None
    assert "\n" not in fit.refusal
    selection = select_trial(store, study, fit, None, None)
    assert selection.selected_by == "measured"
    with pytest.raises(StudyError, match="--select predicted"):
        select_trial(store, study, fit, None, "predicted")


def test_what_is_no_point_is_left_out_with_its_reason(store: Store, study: Study) -> None:
    fill_study(store, study, 2)
    enter(store, study, 10, trial_config(64, BUDGET, min_lr_ratio=0.9))
    enter(store, study, 11, trial_config(64, BUDGET, max_lr=3e-3), epochs=7.0)
    found = FittedRuns.of(store.runs(study.id))
    assert len(found.runs) == 2
    assert found.left_out == {
        "ended at a high learning rate": ["trial 10"],
        "saw its data more than 4 times": ["trial 11"],
    }


def test_a_promotion_of_the_budget_does_not_choose_itself_again(store: Store, study: Study) -> None:
    runs = fill_study(store, study, 24)
    before = fit_study(study, runs, 100.0)
    done = trial_config(64, 100 * BUDGET)
    enter(store, study, 0, done, kind="promotion", scale=100.0, parent_run_id=runs[0].id,
          loss_nats=1.5)  # fmt: skip
    after = fit_study(study, store.runs(study.id), 100.0)
    assert after.to_dict() == before.to_dict()


def test_prediction_is_written_before_the_run_and_never_again(store: Store, study: Study) -> None:
    fit = fit_study(study, fill_study(store, study, 24), 100.0)
    selection = select_trial(store, study, fit, None, None)
    config = trial_config(256, 100 * BUDGET)
    values: dict[str, Any] = {
        "kind": "promotion", "config": config, "budget_flops": config.budget_flops,
        "scale": 100.0, "parent_run_id": selection.trial.id,
    }  # fmt: skip
    run = store.run(add_run(store, study.id, 0, **values))
    record_prediction(store, study, run, config, selection)
    record_prediction(store, study, run, config, selection)
    (told,) = store.predictions(study.id)
    assert (told.run_id, told.selected_by) == (run.id, "predicted")
    assert told.low_nats < told.val_loss_nats < told.high_nats
    newest = store.newest_fit(study.id)
    assert newest is not None
    assert newest.id == told.fit_id
    assert newest.record == json.loads(json.dumps(newest.record))
    again = ScalingFit.from_dict(newest.record["fit"])
    assert fit.law is not None
    assert pytest.approx(fit.law.main.fit.law.E, rel=1e-4) == again.law.E
    assert newest.record["counts"] == fit.law.main.counts
    late = store.run(add_run(store, study.id, 1, **values))
    store.start_attempt(late.id)
    with pytest.raises(IllegalChangeError, match="too late"):
        record_prediction(store, study, late, config, selection)


def test_equal_fits_are_stored_once(store: Store, study: Study) -> None:
    runs = fill_study(store, study, 12)
    ids = set()
    for _ in range(2):
        fit = fit_study(study, runs, 100.0)
        ids.add(store.add_fit(study.id, scale=100.0, refusal=fit.refusal, record=fit.to_dict()))
    assert len(ids) == 1
