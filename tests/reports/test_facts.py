import math
from fractions import Fraction

import numpy as np
import pytest
from sqlalchemy import create_engine, select
from sqlalchemy.orm import Session

from reports.facts import Facts, as_number, run_config, tokens_per_param
from reports.read import read_study
from studies.database.tables import LedgerEntry, Run
from tests.support.synthetic_study import FIRST, fill_database


@pytest.fixture
def study(tmp_path):
    """Writes a study into study.db, lets a test change its runs, and gives the facts."""
    path = tmp_path / "study.db"

    def make(change=None, **plan):
        fill_database(f"sqlite:///{path}", **plan)
        if change is not None:
            engine = create_engine(f"sqlite:///{path}")
            with Session(engine) as session, session.begin():
                change(session, session.scalars(select(Run).order_by(Run.id)).all())
            engine.dispose()
        return Facts(read_study(str(path)))

    return make


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

    facts = study(level, trials=4, failed=0, rejections=0, promotion=None)
    assert [r.number for r in facts.ranked] == [0, 1, 2, 3]


def test_a_loss_that_is_no_number_ranks_nowhere(study):
    def spoil(session, runs):
        runs[0].val_loss_nats, runs[1].val_loss_nats = math.inf, None

    facts = study(spoil, trials=4, failed=0, rejections=0, promotion=None)
    assert {r.number for r in facts.ranked} == {2, 3}


def test_seed_noise_is_the_pooled_standard_deviation(study):
    facts = study(trials=6, failed=0, rejections=0, repeats=4, promotion=None)
    hashes = [r.config_hash for r in facts.ranked]
    repeated = max(set(hashes), key=hashes.count)
    losses = [r.val_loss_nats for r in facts.ranked if r.config_hash == repeated]
    assert len(losses) == 5
    assert facts.seed_noise.sd_nats == pytest.approx(np.std(losses, ddof=1), rel=1e-12)
    assert (facts.seed_noise.n_configs, facts.seed_noise.n_runs) == (1, 5)


def test_two_repeated_configurations_are_pooled(study):
    def repeat_another(session, runs):
        runs[2].config_hash, runs[2].seed = runs[1].config_hash, 7

    facts = study(repeat_another, trials=5, failed=0, rejections=0, repeats=2, promotion=None)
    groups = {}
    for run in facts.ranked:
        groups.setdefault(run.config_hash, []).append(run.val_loss_nats)
    repeated = [losses for losses in groups.values() if len(losses) > 1]
    squares = sum(np.var(losses, ddof=1) * (len(losses) - 1) for losses in repeated)
    assert facts.seed_noise.sd_nats == pytest.approx(math.sqrt(squares / (1 + 2)), rel=1e-12)


def test_without_repeats_seed_noise_is_unknown(study):
    assert study(trials=6).seed_noise is None


def test_a_repeat_of_the_best_is_no_rival(study):
    def best_twice(session, runs):
        for run in runs:
            if run.config_hash == runs[0].config_hash:
                run.val_loss_nats = 4.0 + run.seed / 100

    facts = study(best_twice, trials=5, failed=0, rejections=0, repeats=2, promotion=None)
    assert [r.config_hash for r in facts.ranked[:3]] == [facts.best.config_hash] * 3
    assert facts.rival is facts.ranked[3]


def test_costs_are_the_ledgers_sums(study, tmp_path):
    facts = study(trials=5, failed=1, rejections=0, recomputed_steps=17)
    costs = facts.costs(facts.trials)
    with Session(create_engine(f"sqlite:///{tmp_path / 'study.db'}")) as session:
        entries = session.scalars(select(LedgerEntry)).all()
    ids = {r.id for r in facts.trials}
    for convention in ("nanogpt", "matmul", "mac"):
        spent = sum(
            getattr(e, f"flops_{convention}") for e in entries
            if e.entry == "spent" and e.run_id in ids
        )  # fmt: skip
        assert costs.spent.flops(convention) == spent
        recomputed = sum(
            Fraction(17 * getattr(r, f"planned_flops_{convention}"), r.num_steps)
            for r in facts.trials
        )
        assert costs.recomputed.flops(convention) == recomputed
    assert costs.train_seconds == pytest.approx(sum(r.train_seconds for r in facts.trials))


def test_no_ledger_no_cost(study):
    def forget(session, runs):
        for entry in session.scalars(select(LedgerEntry)):
            session.delete(entry)

    facts = study(forget, trials=2, failed=0)
    assert facts.costs(facts.trials).planned is None
    assert facts.costs(facts.trials).spent is None


def test_what_varies_is_in_the_order_of_the_space(study):
    facts = study(trials=12)
    order = list(facts.study.space["parameters"])
    assert facts.varied == sorted(facts.varied, key=order.index)
    assert "p_dropout" not in facts.varied
    assert "max_lr" in facts.varied


def test_a_space_of_another_version_is_read_as_far_as_it_goes(study):
    facts = study(trials=2, failed=0)
    facts.study.space = {"parameters": {"n_embd": {"min": 1, "max": 2}, "new": {"wavelet": 3}}}
    assert list(facts.parameters) == ["n_embd"]
    facts = Facts(facts.data)
    facts.study.space = {}
    assert facts.parameters == {}


def test_tokens_per_parameter(study):
    facts = study(trials=1, failed=0, rejections=0, promotion=None)
    run = facts.best
    assert tokens_per_param(run) == run.num_steps * run.tokens_per_step / run.n_params


def test_a_configuration_of_another_version_is_no_configuration(study):
    facts = study(trials=1, failed=0, promotion=None)
    run = facts.best
    assert run_config(run).steps == run.num_steps
    run.config = {**run.config, "optimizer": "of tomorrow"}
    assert run_config(run) is None


@pytest.mark.parametrize(
    ("value", "number"),
    [(1, 1.0), (2.5, 2.5), (True, None), ("3", None), (None, None), (math.nan, None)],
)
def test_what_counts_as_a_number(value, number):
    assert as_number(value) == number
