"""Rungs: exact budgets, an even plan, a cost that is known before it is spent."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from budgetsweep.errors import ConfigError
from studies.database.run_kind import RunKind
from studies.database.store import Store
from studies.space.rungs import Rungs, rung_budget
from tests.support.searches import BUDGET, read, run_search, settings_for


def test_every_rung_gets_as_many_trials_and_the_whole_budget_comes_first() -> None:
    rungs = Rungs.parse("0.1, 0.3,1,3")
    taken = [rungs.of_trial(number) for number in range(9)]
    assert taken[:4] == [1, Fraction("0.1"), Fraction("0.3"), 1]
    assert set(Counter(taken).values()) == {3}
    assert rungs.of_finalists == (3,)


def test_cost_is_that_of_trials_and_finalists() -> None:
    assert Rungs().budgets(32) == 32
    assert Rungs.parse("0.1,0.3,1").budgets(30) == 14
    rungs = Rungs.parse("1,3,10")
    assert (rungs.finalists(Fraction(3), 32), rungs.finalists(Fraction(10), 32)) == (1, 1)
    assert rungs.finalists(Fraction(3), 80) == 3
    assert rungs.budgets(32) == 32 + 3 + 10


@given(st.integers(1, 10**30), st.sampled_from(["0.1", "0.3", "1", "3", "0.001"]))
def test_a_rung_is_never_above_its_share(budget: int, multiple: str) -> None:
    flops = rung_budget(Fraction(multiple), budget)
    assert flops <= Fraction(multiple) * budget < flops + 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0.1,0.3", "1, the budget itself"),
        ("0.3,0.1,1", "ascending"),
        ("1,1", "none twice"),
        ("0,1", "0 is not between"),
        ("-1,1", "-1 is not between"),
        ("1,1e9", "not between"),
        ("0.1;1", "multiples of the budget such as"),
        ("", "multiples of the budget such as"),
        ("nan,1", "multiples of the budget such as"),
        ("1/0,1", "multiples of the budget such as"),
    ],
)
def test_bad_rungs_are_refused_in_one_line(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Rungs.parse(text)


@pytest.mark.slow
def test_a_search_with_rungs_spends_what_it_said(tmp_path: Path) -> None:
    rungs = Rungs.parse("0.25,1,2")
    settings = settings_for(tmp_path, trials=4, rungs=rungs)
    outcome = run_search(settings)
    assert outcome.finished
    study, trials = read(settings)
    assert [trial.scale for trial in trials] == [1.0, 0.25, 1.0, 0.25]
    for trial in trials:
        assert trial.budget_flops == BUDGET * (trial.scale or 1)
        assert trial.planned_flops_nanogpt <= trial.budget_flops
    assert outcome.best is not None
    assert outcome.best.scale == 1.0
    with Store.open(settings.storage) as store:
        finalists = store.runs(study.id, kind=RunKind.FINALIST)
        assert [(run.scale, run.status) for run in finalists] == [(2.0, "complete")]
        assert store.ledger(study.id).spent.flops("nanogpt") <= rungs.budgets(4) * BUDGET
        fits = store.newest_fit(study.id)
        assert fits is not None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rungs": Rungs.parse("0.5,1"), "pruning": True}, "--prune compares"),
        ({"rungs": Rungs.parse("0.5,1"), "sampler": "tpe"}, "--sampler tpe compares losses at one"),
        ({"for_scale": 10.0, "sampler": "gp"}, "leave out --for-scale and --rungs below 1"),
    ],
)
def test_what_needs_one_budget_says_so(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        settings_for(tmp_path, **changes)
