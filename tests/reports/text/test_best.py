import pytest

from reports.text import best
from tests.support.blocks import sentences


def losses(*values, error=0.001):
    def change(session, runs):
        for run, value in zip(runs, [*values, *[9.0] * len(runs)], strict=False):
            run.val_loss_nats, run.val_loss_stderr_nats = value, error

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (losses(5.3, 5.0, 5.1), "0.1000 nats (11 % in perplexity) ahead of the second, trial 2"),
        (losses(5.3, 5.0, 5.1), "0.3000 nats (35 % in perplexity) ahead of the first proposal"),
        (losses(5.0, 5.1), "It is the first proposal itself"),
        (losses(5.0, 5.1), "How sure? No other trial is within 0.02 nats"),
        (losses(5.0, 5.01, 5.015, 5.3), "How sure? Call it a tie with 2 other trials"),
        (losses(5.0), "unknown here: no configuration was run with a second seed"),
        (losses(5.0, error=0.01), "± 0.0100 nats (one standard error) from"),
        (losses(5.0, error=None), "not recorded"),
    ],
)
def test_what_is_said_of_the_best(study, change, said):
    assert said in sentences(best.best(study(change)))
