"""The report on larger budgets: both answers, and predictions held against what came."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from reports.document import Bullets, Table, Text
from reports.facts import Facts
from reports.read import read_study
from reports.text import scaling as text_scaling
from studies.database.store import Store
from studies.database.tables import Study
from studies.promotion.selection import record_prediction, select_trial
from studies.scaling.prediction import fit_study
from tests.support.lawful_runs import BUDGET, enter, fill_study, trial_config
from tests.support.tiny_studies import study_settings
from trainer.events import RunResult, RunStatus


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "study.db", create=True) as opened:
        yield opened


@pytest.fixture
def study(store: Store) -> Study:
    return store.create_study("s", study_settings(budget_flops=BUDGET, rungs="0.1,0.3,1"))


def facts_of(tmp_path: Path) -> Facts:
    return Facts(read_study(str(tmp_path / "study.db")))


def told(blocks: list[Text | Table] | list[Text | Table | Bullets]) -> str:
    return " ".join(str(block) for block in blocks)


def fitted(store: Store, study: Study, n_trials: int) -> None:
    fit = fit_study(study, fill_study(store, study, n_trials), 100.0)
    store.add_fit(study.id, scale=100.0, refusal=fit.refusal, record=fit.to_dict())


def test_both_answers_stand_side_by_side(store: Store, study: Study, tmp_path: Path) -> None:
    fitted(store, study, 36)
    enter(store, study, 40, trial_config(64, BUDGET, min_lr_ratio=0.5), scale=1.0)
    newest = store.newest_fit(study.id)
    assert newest is not None
    choice = newest.record["choice"]
    blocks = text_scaling.answers(facts_of(tmp_path))
    (table,) = (block for block in blocks if isinstance(block, Table))
    assert [row[:2] for row in table.rows] == [
        ["measured best", str(choice["measured"])],
        ["predicted best", str(choice["predicted"])],
    ]
    assert "80 % interval" in table.head
    assert f"a regret of {choice['measured_costs_nats']:.3f} nats at 100 times" in told(blocks)
    assert "fitted to 36 runs of 6 sizes at 3 budgets" in told(blocks)
    counted = text_scaling.COUNTED[newest.record["counts"]]
    assert f"N counts the {counted}." in told(blocks)
    weight = f"{100 * newest.record['weight']:.0f} % of the weight"
    assert (weight in told(blocks)) == (newest.record["weight"] < text_scaling.SURE)


def test_a_law_that_leads_alone_is_told_alone(store: Store, study: Study, tmp_path: Path) -> None:
    fit = fit_study(study, fill_study(store, study, 36), 100.0)
    record = {**fit.to_dict(), "weight": 1.0, "counts": "blocks"}
    store.add_fit(study.id, scale=100.0, refusal=None, record=record)
    text = told(text_scaling.answers(facts_of(tmp_path)))
    assert text_scaling.COUNTED["blocks"] in text
    assert "weight" not in text


def test_a_refusal_is_told_with_its_reason(store: Store, study: Study, tmp_path: Path) -> None:
    fitted(store, study, 2)
    blocks = text_scaling.answers(facts_of(tmp_path))
    assert len(blocks) == 1
    assert "Too few runs to fit a scaling law: " in told(blocks)


@pytest.mark.parametrize(("error", "inside"), [(0.01, "yes"), (9.0, "no")])
def test_predictions_are_scored(
    store: Store, study: Study, tmp_path: Path, error: float, inside: str
) -> None:
    fit = fit_study(study, fill_study(store, study, 36), 100.0)
    selection = select_trial(store, study, fit, None, None)
    config = trial_config(512, 100 * BUDGET)
    run_id = store.add_run(
        study_id=study.id, kind="promotion", number=0, params={}, config=config,
        budget_flops=100 * BUDGET, data_checksum=None, val_checksum=None, epochs=None,
        estimated_memory_bytes=None, output_dir=None, parent_run_id=selection.trial.id, scale=100.0,
    )  # fmt: skip
    record_prediction(store, study, store.run(run_id), config, selection)
    (waiting,) = text_scaling.scores(facts_of(tmp_path))
    assert isinstance(waiting, Table)
    assert waiting.rows[0][5:] == ["queued", "–", "–"]
    (prediction,) = store.predictions(study.id)
    store.start_attempt(run_id)
    reached = prediction.val_loss_nats + error
    store.finish_run(
        run_id,
        RunResult(status=RunStatus.COMPLETE, step=config.steps, steps_executed=config.steps,
                  tokens=config.total_tokens, val_loss_nats=reached, val_ppl=1.0),
    )  # fmt: skip
    table, verdict = text_scaling.scores(facts_of(tmp_path))
    assert isinstance(table, Table)
    assert table.rows[0][0] == "promotion 0 (predicted)"
    assert table.rows[0][-2:] == [f"{error:+.3f}", inside]
    assert f"{int(inside == 'yes')} of 1 promotion ended within the 80 % interval" in str(verdict)


def test_a_study_without_a_fit_says_so(store: Store, study: Study, tmp_path: Path) -> None:
    fill_study(store, study, 2)
    facts = facts_of(tmp_path)
    assert "no search or promotion has fitted" in told(text_scaling.answers(facts))
    assert text_scaling.scores(facts) == []
