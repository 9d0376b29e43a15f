"""A search that names no rungs is planned for its promotion, and a study keeps the plan it has."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from budgetsweep.cli.search import search_command, search_settings
from studies.database.store import Store
from studies.settings import SearchSettings
from studies.space.rungs import DEFAULT_RUNGS
from tests.support.commands import run

WHOLE = ("1", None)
PLANNED = (DEFAULT_RUNGS, 100.0)


def settings(*words: str) -> SearchSettings:
    context = search_command.make_context("search", ["--simulate", "hoffmann2022", *words])
    given = {name: v for name, v in context.params.items() if name not in ("dry_run", "yes")}
    return search_settings(**given)


@pytest.mark.parametrize(
    ("line", "plan"),
    [
        ("", PLANNED),
        ("--sampler law --trials 12", PLANNED),
        ("--for-scale 10", (DEFAULT_RUNGS, 10.0)),
        ("--trials 11", WHOLE),
        ("--rungs 1", WHOLE),
        ("--rungs 0.5,1", ("0.5,1", None)),
        ("--rungs 1 --for-scale 10", ("1", 10.0)),
        ("--sampler tpe", WHOLE),
        ("--prune", WHOLE),
    ],
)
def test_which_searches_have_rungs(line: str, plan: tuple[str, float | None]) -> None:
    planned = settings(*line.split())
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
