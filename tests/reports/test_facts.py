import math
from fractions import Fraction

import pytest
from sqlalchemy import create_engine, select
from sqlalchemy.orm import Session

from reports.facts import as_number
from studies.database.tables import LedgerEntry
from tests.support.synthetic_study import FIRST


def test_the_ranking_is_that_of_the_database(study):
    facts = study(trials=9, failed=2, rejections=3)
    with_loss = [r for r in facts.data.runs if r.kind == "trial" and r.status == "complete"]
    expected = sorted(with_loss, key=lambda r: r.val_loss_nats)
    assert [r.number for r in facts.ranked] == [r.number for r in expected]
    assert facts.best is facts.ranked[0]
    assert facts.first.params == FIRST


def test_of_two_equals_the_earlier_is_best(study):
    def level(session, runs):
        for run in runs:
            run.val_loss_nats = 5.0

    facts = study(level, trials=4)
    assert [r.number for r in facts.ranked] == [0, 1, 2, 3]


def test_a_loss_that_is_no_number_ranks_nowhere(study):
    def spoil(session, runs):
        runs[0].val_loss_nats, runs[1].val_loss_nats = math.inf, None

    facts = study(spoil, trials=4)
    assert {r.number for r in facts.ranked} == {2, 3}


def test_costs_are_the_ledgers_sums(study, tmp_path):
    facts = study(trials=5, failed=1, recomputed_steps=17)
    spending = facts.spending(facts.trials)
    with Session(create_engine(f"sqlite:///{tmp_path / 'study.db'}")) as session:
        entries = session.scalars(select(LedgerEntry)).all()
    ids = {r.id for r in facts.trials}
    for convention in ("nanogpt", "matmul", "mac"):
        spent = sum(
            getattr(e, f"flops_{convention}") for e in entries
            if e.entry == "spent" and e.run_id in ids
        )  # fmt: skip
        assert spending.spent.flops(convention) == spent
        recomputed = sum(
            Fraction(17 * getattr(r, f"planned_flops_{convention}"), r.num_steps)
            for r in facts.trials
        )
        assert spending.recomputed.flops(convention) == recomputed


def test_what_varies_is_in_the_order_of_the_space(study):
    facts = study(trials=12)
    order = list(facts.study.space["parameters"])
    assert facts.varied == sorted(facts.varied, key=order.index)
    assert "p_dropout" not in facts.varied
    assert "max_lr" in facts.varied


@pytest.mark.parametrize(
    ("value", "number"),
    [(1, 1.0), (2.5, 2.5), (True, None), ("3", None), (None, None), (math.nan, None)],
)
def test_what_counts_as_a_number(value, number):
    assert as_number(value) == number
