import pytest
from sqlalchemy import select

from reports.text import search
from studies.database.tables import Rejection
from studies.space.search_space import Parameter
from tests.support.blocks import sentences
from tests.support.synthetic_study import FIRST


def test_the_table_marks_what_each_of_the_best_changed(study):
    facts = study(trials=9)
    _, table = search.best_few(facts)
    names = [row[0] for row in table.rows]
    assert table.head[1] == "trial 0 (first)" or "(first)" in " ".join(table.head)
    shown = [next(r for r in facts.trials if f"trial {r.number}" in h) for h in table.head[1:]]
    for name in facts.varied:
        row = names.index(name)
        for column, run in enumerate(shown, start=1):
            assert ((row, column) in table.strong) == (run.params[name] != FIRST[name])
    losses_shown = [float(cell) for cell in table.rows[0][1:] if cell != "–"]
    assert len(losses_shown) >= 5


def test_rejections_are_counted_with_their_excess(study):
    def over(session, runs):
        for rejection in session.scalars(select(Rejection)):
            rejection.reason, rejection.excess = "over_budget", float(rejection.number + 1)
            rejection.detail = "too much"

    facts = study(over, trials=0, rejections=4)
    _, table = search.rejected(facts)
    assert table.rows == [["over the budget", "4", "×2.5", "×4", "too much (proposal 0)"]]


def test_a_reason_of_a_newer_version_is_shown_as_it_is(study):
    def new(session, runs):
        for rejection in session.scalars(select(Rejection)):
            rejection.reason, rejection.excess = "too_loud", None

    facts = study(new, trials=0, rejections=2)
    assert search.rejected(facts)[1].rows[0][:4] == ["too_loud", "2", "–", "–"]


def test_many_failures_are_cut_short_with_a_count(study):
    words = sentences(search.failed(study(trials=15, failed=14)))
    assert words.count("training loss became nan") == search.MOST_EXAMPLES
    assert "and 4 more; all are in data.csv" in words


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"value": "fill"}, "fill (fixed)"),
        ({"values": [16, 32]}, "16, 32"),
        ({"min": 32, "max": 256, "step": 32}, "32 … 256 in steps of 32"),
        (
            {"min": 1e-3, "max": 3e-2, "distribution": "log_uniform_values"},
            "0.001 … 0.03, log",
        ),
    ],
)
def test_the_space_in_words(entry, words):
    assert search.space_in_words(Parameter.model_validate(entry)) == words
