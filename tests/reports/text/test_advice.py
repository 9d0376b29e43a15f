import math

import pytest
from sqlalchemy import select

from reports.facts import Facts, run_config
from reports.read import read_study
from reports.text.advice import advice, edge_side, suited_params
from studies.database.tables import Rejection
from studies.space.search_space import Parameter
from tests.support.synthetic_study import fill_database


@pytest.fixture
def advised(study):
    """Advice on a study that a test has changed, as one text."""

    def make(change=None, **plan):
        facts = study(change, **({"trials": 14} | plan))
        return "\n".join(f"{remark.lead} {remark.text}" for remark in advice(facts)[0].items)

    return make


def a_clear_winner(runs):
    for rank, run in enumerate(runs):
        run.val_loss_nats = 5.0 + 0.1 * rank


def test_the_best_at_the_edge_says_widen(advised):
    def edge(session, runs):
        a_clear_winner(runs)
        runs[0].params = {**runs[0].params, "n_embd": 192, "max_lr": 0.03}

    text = advised(edge)
    assert "The learning rate is at the edge of its range" in text
    assert "max_lr = 0.03, its upper end (1 of the best 5 there). Raise its upper end" in text
    assert "n_embd = 192, its upper end" in text


def test_the_best_in_the_middle_does_not(advised):
    def middle(session, runs):
        a_clear_winner(runs)
        runs[0].params = {
            **runs[0].params, "n_embd": 96, "n_layer": 3, "max_lr": 0.01, "seq_len": 128,
            "batch_size": 64, "warmup_fraction": 0.03, "weight_decay": 0.01,
        }  # fmt: skip

    assert "edge" not in advised(middle)


LOG = {"min": 1e-3, "max": 3e-2, "distribution": "log_uniform_values"}


@pytest.mark.parametrize(
    ("entry", "value", "side"),
    [
        ({"min": 32, "max": 256, "step": 32}, 32, "lower"),
        ({"min": 32, "max": 256, "step": 32}, 64, None),
        ({"min": 32, "max": 256, "step": 32}, 256, "upper"),
        ({"min": 1, "max": 8}, 1, None),  # a model cannot have fewer layers
        (LOG, 1.05e-3, "lower"),
        (LOG, 1.3e-3, None),
        (LOG, 2.9e-2, "upper"),
        ({"min": 0.0, "max": 0.3}, 0.0, None),  # nothing below zero
        ({"min": 0.0, "max": 1.0}, 1.0, None),  # a share
        ({"min": 0.0, "max": 0.3}, 0.299, "upper"),
        ({"values": [16, 32, 64]}, 64, "upper"),
        ({"values": [16, 32, 64]}, 16, "lower"),
        ({"values": [16, 32, 64]}, 32, None),
        ({"values": [0.0, 0.1]}, 0.1, None),  # a switch, not a range
        ({"values": ["a", "b", "c"]}, "a", None),
        ({"value": 3}, 3, None),
        ({"min": 5, "max": 5}, 5, None),
        (LOG, None, None),
        (LOG, True, None),
    ],
)
def test_edges(entry, value, side):
    assert edge_side(Parameter.model_validate(entry), value) == side


def test_many_rejections_are_named_with_a_cure(advised):
    def same_reason(session, runs):
        for rejection in session.scalars(select(Rejection)):
            rejection.reason = "out_of_memory"

    text = advised(same_reason, rejections=10)
    assert "42 % of the proposals were refused, 100 % of them as does not fit in memory" in text
    assert "batch_size" in text


def test_few_rejections_are_not(advised):
    assert "refused" not in advised(rejections=2)


def test_only_rejections(advised):
    text = advised(trials=0, rejections=6)
    assert "Change the space or the budget." in text
    assert "--dry-run" in text


def test_nothing_yet(advised):
    assert "continues where it stopped" in advised(trials=0)


def test_too_few_trials(advised):
    assert "Too few trials. 3 complete trials for" in advised(trials=3)


def test_enough_trials(advised):
    assert "Too few" not in advised(trials=30)


def test_ties_ask_for_repeats(advised):
    def tie(session, runs):
        a_clear_winner(runs)
        runs[1].val_loss_nats = runs[0].val_loss_nats + 0.004

    text = advised(tie)
    assert "Trials 0 and 1 are 0.0040 nats apart" in text
    assert "three seeds" in text


def test_a_clear_winner_is_no_tie(advised):
    assert "tied" not in advised(lambda session, runs: a_clear_winner(runs))


def test_known_noise_replaces_the_assumed_one(advised):
    """Repeats 0.2 nats apart make a gap of 0.1 a tie."""

    def noisy(session, runs):
        a_clear_winner(runs)
        runs[-1].val_loss_nats, runs[-2].val_loss_nats = 7.0, 7.2
        runs[-1].config_hash = runs[-2].config_hash = "same"
        runs[-1].seed = 5

    assert "within what the repeats may differ by" in advised(noisy)


def test_a_small_validation_set(advised):
    def small(session, runs):
        for run in runs:
            run.val_loss_stderr_nats = 0.06

    assert "a sampling error of 0.0600 nats on each loss" in advised(small)


def test_a_large_validation_set_is_no_cause(advised):
    assert "sampling error" not in advised()


def test_leftover_budget(advised):
    def leftover(session, runs):
        a_clear_winner(runs)
        runs[0].planned_flops_nanogpt //= 2

    assert "used 50 % of its budget" in advised(leftover)


def test_small_budget_shapes_are_warned_about_before_a_promotion(advised):
    text = advised()
    assert "usually too small for 100 times as many" in text
    assert "tokens per parameter" in text


def test_a_sampled_softmax_is_not_judged_by_tokens_a_parameter(advised):
    """Most of its parameters cost a token nothing, so Hoffmann's ratio does not hold."""

    def sampled(session, runs):
        for run in runs:
            run.config = {**run.config, "head_samples": 1024}

    text = advised(sampled)
    assert "usually too small for 100 times as many" in text
    assert "tokens per parameter" not in text


def test_promotions_that_are_not_done(advised):
    assert "the same budgetsweep promote command continues" in advised(promotion="running")


def test_promotions_that_failed(advised):
    assert "Promote again with a lower learning rate" in advised(promotion="failed")


def test_a_promotion_that_is_too_small_for_its_budget(advised):
    text = advised(promotion="complete")
    assert "the shape chosen at the small budget is too small for this one" in text
    assert "beyond four, repeated data" in text


def test_a_promotion_that_is_undertrained(advised):
    def huge(session, runs):
        runs[-1].n_params, runs[-1].epochs = 10**9, 1.0

    text = advised(huge, promotion="complete")
    assert "undertrained" in text
    assert "beyond four" not in text


def test_a_promotion_that_did_worse_than_its_trial(advised):
    def worse(session, runs):
        runs[-1].val_loss_nats = 20.0

    assert "ended no better than its trial" in advised(worse, promotion="complete")


def test_unstable_training(advised):
    assert "Lower the upper end of max_lr" in advised(failed=3)


def test_memory(advised):
    def out_of_memory(session, runs):
        for run in runs:
            if run.status == "failed":
                run.reason = "CUDA out of memory at step 3"

    text = advised(out_of_memory, failed=2)
    assert "2 trials ran out of memory" in text
    assert "diverged" not in text


def test_other_failures(advised):
    def broken(session, runs):
        for run in runs:
            if run.status == "failed":
                run.reason = "worker died twice"

    assert "7 of 14 trials failed; the first: worker died twice" in advised(broken, failed=7)


def test_suited_size_solves_the_budget(tmp_path):
    """At the suited N, r·N tokens at the run's cost for each token and parameter spend it all."""
    path = tmp_path / "study.db"
    fill_database(f"sqlite:///{path}", trials=2, failed=0)
    run = Facts(read_study(str(path))).best
    suited = suited_params(run, 1e17)
    per_token_and_param = run.planned_flops_nanogpt / run.planned_tokens / run.n_params
    assert per_token_and_param * suited * (20 * suited) == pytest.approx(1e17, rel=1e-9)
    assert run_config(run) is not None
    # the rule of thumb 6·N·D = C, D = 20·N
    assert suited == pytest.approx(math.sqrt(1e17 / 120), rel=0.1)
