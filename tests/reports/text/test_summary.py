import math

import pytest
from sqlalchemy import select

from reports.document import Bullets, Table
from reports.text import search as text_search
from reports.text import summary
from studies.database.tables import LedgerEntry, Rejection
from studies.space.search_space import Parameter
from tests.support.synthetic_study import FIRST


def said(blocks):
    """All sentences of some blocks."""
    parts = []
    for block in blocks:
        items = block.items if isinstance(block, Bullets) else [block]
        parts += [f"{item.lead} {item.text}" for item in items if not isinstance(item, Table)]
    return "\n".join(parts)


def losses(*values, error=0.001):
    def change(session, runs):
        for run, value in zip(runs, [*values, *[9.0] * len(runs)], strict=False):
            run.val_loss_nats, run.val_loss_stderr_nats = value, error

    return change


def test_the_gap_is_given_in_nats_and_in_perplexity(study):
    words = said(summary.best(study(losses(5.3, 5.0, 5.1))))
    gap = math.expm1(5.1 - 5.0) * 100
    assert f"0.1000 nats ({gap:.0f} % in perplexity) ahead of the second, trial 2" in words
    assert "0.3000 nats (35 % in perplexity) ahead of the first proposal" in words


def test_a_first_proposal_that_is_best_is_said_to_be(study):
    assert "It is the first proposal itself" in said(summary.best(study(losses(5.0, 5.1))))


def test_a_tie_is_called_a_tie(study):
    words = said(summary.best(study(losses(5.0, 5.01, 5.015, 5.3))))
    assert "How sure? Call it a tie with 2 other trials" in words
    assert "unknown here, for no configuration was run with a second seed" in words


def test_a_gap_beyond_the_sampling_error_of_independent_texts(study):
    words = said(summary.best(study(losses(5.0, 5.1, error=0.01))))
    assert "0.0141 nats of independent samples" in words
    assert "hardly an accident of which text was held out" in words
    assert "too small" not in words


def test_a_gap_within_it_is_not_called_sure(study):
    words = said(summary.best(study(losses(5.0, 5.1, error=0.06))))
    assert "the validation text is small for such a gap" in words
    assert "an accident of which text was held out cannot be told" in words


def test_without_a_stored_error_none_is_claimed(study):
    words = said(summary.best(study(losses(5.0, 5.1, error=None))))
    assert "its error was not recorded" in words
    assert "independent samples" not in words


@pytest.mark.parametrize(("spread", "verdict"), [(0.2, "Not sure"), (0.001, "Fairly")])
def test_known_noise_between_seeds_decides(study, spread, verdict):
    def repeats(session, runs):
        losses(5.0, 5.1, 6.0, 6.0 + spread)(session, runs)
        runs[2].config_hash = runs[3].config_hash = "same"
        runs[3].seed = 1

    words = said(summary.best(study(repeats)))
    assert f"How sure? {verdict}" in words
    assert f"{spread / math.sqrt(2):.4f} nats (standard deviation over 2 runs" in words


def test_different_validation_texts_do_not_compare(study):
    def other_text(session, runs):
        runs[1].val_checksum = "another"

    assert "How sure? Not at all" in said(summary.best(study(other_text)))


def test_costs_say_when_the_ledger_is_empty(study):
    def forget(session, runs):
        for entry in session.scalars(select(LedgerEntry)):
            session.delete(entry)

    (only,) = summary.cost(study(forget))
    assert "The ledger has no entry" in only.text


def test_exact_costs_are_in_the_table_digit_for_digit(study):
    facts = study(trials=3, recomputed_steps=5)
    spent = sum(facts.data.spending[r.id].spent.nanogpt for r in facts.trials)
    table = summary.cost(facts)[2]
    assert table.rows[0][0] == "nanogpt (budget)"
    assert table.rows[0][2] == f"{spent:,}"


def test_a_run_over_its_budget_would_be_said(study):
    def over(session, runs):
        runs[0].planned_flops_nanogpt = runs[0].budget_flops + 1

    assert "1 run planned more than the budget" in said(summary.cost(study(over))[:1])


def test_the_table_marks_what_each_of_the_best_changed(study):
    facts = study(trials=9)
    _, table = text_search.best_few(facts)
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
    _, table = text_search.rejected(facts)
    assert table.rows == [["over the budget", "4", "×2.5", "×4", "too much (proposal 0)"]]


def test_a_reason_of_a_newer_version_is_shown_as_it_is(study):
    def new(session, runs):
        for rejection in session.scalars(select(Rejection)):
            rejection.reason, rejection.excess = "too_loud", None

    facts = study(new, trials=0, rejections=2)
    assert text_search.rejected(facts)[1].rows[0][:4] == ["too_loud", "2", "–", "–"]


def test_many_failures_are_cut_short_with_a_count(study):
    words = said(text_search.failed(study(trials=15, failed=14)))
    assert words.count("training loss became nan") == text_search.MOST_EXAMPLES
    assert "and 4 more; all are in data.csv" in words


def test_a_promotion_without_its_trial_has_dashes(study):
    def orphan(session, runs):
        runs[-1].parent_run_id = None

    sentence, table = text_search.promotion(study(orphan, promotion="complete"))
    assert "a trial that is not recorded" in sentence.text
    assert {row[1] for row in table.rows} == {"–"}


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
    assert text_search.space_in_words(Parameter.model_validate(entry)) == words
