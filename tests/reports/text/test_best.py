import math

import pytest

from reports.text import best
from tests.support.blocks import sentences


def losses(*values, error=0.001):
    def change(session, runs):
        for run, value in zip(runs, [*values, *[9.0] * len(runs)], strict=False):
            run.val_loss_nats, run.val_loss_stderr_nats = value, error

    return change


def test_the_gap_is_given_in_nats_and_in_perplexity(study):
    words = sentences(best.best(study(losses(5.3, 5.0, 5.1))))
    gap = math.expm1(5.1 - 5.0) * 100
    assert f"0.1000 nats ({gap:.0f} % in perplexity) ahead of the second, trial 2" in words
    assert "0.3000 nats (35 % in perplexity) ahead of the first proposal" in words


def test_a_first_proposal_that_is_best_is_said_to_be(study):
    assert "It is the first proposal itself" in sentences(best.best(study(losses(5.0, 5.1))))


def test_a_tie_is_called_a_tie(study):
    words = sentences(best.best(study(losses(5.0, 5.01, 5.015, 5.3))))
    assert "How sure? Call it a tie with 2 other trials" in words
    assert "unknown here: no configuration was run with a second seed" in words


def test_a_gap_beyond_the_sampling_error_of_independent_texts(study):
    words = sentences(best.best(study(losses(5.0, 5.1, error=0.01))))
    assert "0.0141 nats of independent samples" in words
    assert "hardly an accident of what was held out" in words
    assert "too small" not in words


def test_a_gap_within_it_is_not_called_sure(study):
    words = sentences(best.best(study(losses(5.0, 5.1, error=0.06))))
    assert "the validation set is small for such a gap" in words
    assert "may be an accident of what was held out" in words


def test_without_a_stored_error_none_is_claimed(study):
    words = sentences(best.best(study(losses(5.0, 5.1, error=None))))
    assert "not recorded" in words
    assert "independent samples" not in words


@pytest.mark.parametrize(("spread", "verdict"), [(0.2, "Not sure"), (0.001, "Fairly")])
def test_known_noise_between_seeds_decides(study, spread, verdict):
    def repeats(session, runs):
        losses(5.0, 5.1, 6.0, 6.0 + spread)(session, runs)
        runs[2].config_hash = runs[3].config_hash = "same"
        runs[3].seed = 1

    words = sentences(best.best(study(repeats)))
    assert f"How sure? {verdict}" in words
    assert f"{spread / math.sqrt(2):.4f} nats (standard deviation over 2 runs" in words


def test_different_validation_texts_do_not_compare(study):
    def other_text(session, runs):
        runs[1].val_checksum = "another"

    assert "How sure? Not at all" in sentences(best.best(study(other_text)))
