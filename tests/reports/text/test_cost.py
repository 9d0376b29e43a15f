from reports.text.cost import cost
from tests.support.blocks import sentences


def test_costs_say_when_the_ledger_is_empty(study):
    (only,) = cost(study(trials=0))
    assert "The ledger has no entry" in only.text


def test_exact_costs_are_in_the_table_digit_for_digit(study):
    facts = study(trials=3, recomputed_steps=5)
    spent = sum(facts.data.spending[r.id].spent.nanogpt for r in facts.trials)
    table = cost(facts)[2]
    assert table.rows[0][0] == "nanogpt (budget)"
    assert table.rows[0][2] == f"{spent:,}"


def test_a_run_over_its_budget_would_be_sentences(study):
    def over(session, runs):
        runs[0].planned_flops_nanogpt = runs[0].budget_flops + 1

    assert "1 run planned more than the budget" in sentences(cost(study(over))[:1])
