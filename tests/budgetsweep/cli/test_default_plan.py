"""A search that names no rungs is planned for its promotion, and a study keeps the plan it has."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from budgetsweep.cli.search import search_settings
from studies.database.store import Store
from studies.settings import SearchSettings
from studies.space.rungs import DEFAULT_RUNGS
from tests.support.commands import run

WHOLE = ("1", None)
PLANNED = (DEFAULT_RUNGS, 100.0)


def settings(**given: Any) -> SearchSettings:
    return search_settings(**{"trials": 32, "simulate": "hoffmann2022", **given})


@pytest.mark.parametrize(
    ("given", "plan"),
    [
        ({}, PLANNED),
        ({"sampler": "law", "trials": 12}, PLANNED),
        ({"for_scale": 10.0}, (DEFAULT_RUNGS, 10.0)),
        ({"trials": 11}, WHOLE),
        ({"rungs": "1"}, WHOLE),
        ({"rungs": "0.5,1"}, ("0.5,1", None)),
        ({"rungs": "1", "for_scale": 10.0}, ("1", 10.0)),
        ({"sampler": "tpe"}, WHOLE),
        ({"pruning": True}, WHOLE),
    ],
)
def test_which_searches_have_rungs(given: dict[str, Any], plan: tuple[str, float | None]) -> None:
    planned = settings(**given)
    assert (str(planned.rungs), planned.for_scale) == plan


def test_more_trials_of_a_small_study_keep_its_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for trials in ("3", "12"):
        run("search", "--simulate", "--budget", "1e13", "--study", "s", "--trials", trials)
    with Store.open(tmp_path / "budgetsweep.db") as store:
        study = store.study("s")
        runs = store.runs(study.id, kind="trial")
    assert str(study.settings.rungs) == "1"
    assert len(runs) == 12
    assert all(run.has_whole_budget for run in runs)


def test_what_is_asked_for_must_be_the_plan_of_the_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Callable[..., str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ("search", "--simulate", "--budget", "1e13", "--study", "s", "--trials", "2")
    run(*words)
    assert "another rungs ('1', now '0.3,1')" in refused(*words, "--rungs", "0.3,1")
