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


@pytest.mark.parametrize(
    ("error", "said"), [(0.01, "± 0.0100 nats (one standard error) from"), (None, "not recorded")]
)
def test_the_sampling_error_is_said_where_it_is_known(study, error, said):
    assert said in sentences(best.best(study(losses(5.0, 5.1, error=error))))
