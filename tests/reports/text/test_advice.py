import pytest
from sqlalchemy import select

from reports.text.advice import advice, edge_side
from studies.database.tables import Rejection
from studies.space.search_space import Parameter


@pytest.fixture
def advised(study):
    """Advice on a study that a test has changed, as one text."""

    def make(change=None, **plan):
        facts = study(change, **({"trials": 14} | plan))
        return "\n".join(f"{remark.lead} {remark.text}" for remark in advice(facts)[0].items)

    return make


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


def clear_winner(session, runs):
    for rank, run in enumerate(runs):
        run.val_loss_nats = 5.0 + 0.1 * rank


def best_params(**params):
    """Losses in the order of the trials; the best one has these parameters."""

    def change(session, runs):
        clear_winner(session, runs)
        runs[0].params = {**runs[0].params, **params}

    return change


def every(status="complete", **values):
    """The same values in each run of a status."""

    def change(session, runs):
        for run in runs:
            if run.status == status:
                for name, value in values.items():
                    setattr(run, name, value)

    return change


def promotion_has(**values):
    def change(session, runs):
        for name, value in values.items():
            setattr(runs[-1], name, value)

    return change


def sampled_softmax(session, runs):
    """Most of its parameters cost a token nothing, so Hoffmann's ratio does not hold."""
    for run in runs:
        run.config = {**run.config, "head_samples": 1024}


def one_reason(session, runs):
    for rejection in session.scalars(select(Rejection)):
        rejection.reason = "out_of_memory"


MIDDLE = {
    "n_embd": 96, "n_layer": 3, "max_lr": 0.01, "seq_len": 128, "batch_size": 64,
    "warmup_fraction": 0.03, "weight_decay": 0.01,
}  # fmt: skip
DONE = {"promotion": "complete"}


@pytest.mark.parametrize(
    ("change", "plan", "said"),
    [
        (best_params(n_embd=192, max_lr=0.03), {}, [
            "The learning rate is at the edge of its range", "n_embd = 192, its upper end",
            "max_lr = 0.03, its upper end (1 of the best 5 there). Raise its upper end",
        ]),
        (one_reason, {"rejections": 10}, [
            "42 % of the proposals were refused, 100 % of them as does not fit in memory",
            "batch_size",
        ]),
        (None, {"trials": 0, "rejections": 6}, ["Change the space or the budget.", "--dry-run"]),
        (None, {"trials": 0}, ["continues where it stopped"]),
        (None, {"trials": 3}, ["Too few trials. 3 complete trials for"]),
        (None, {}, ["usually too small for 100 times as many"]),
        (None, {"promotion": "running"}, ["the same budgetsweep promote command continues"]),
        (None, {"promotion": "failed"}, ["Promote again with a lower learning rate"]),
        (None, DONE, ["the shape chosen at the small budget is too small", "beyond four"]),
        (promotion_has(n_params=10**9, epochs=1.0), DONE, ["undertrained"]),
        (promotion_has(val_loss_nats=20.0), DONE, ["ended no better than its trial"]),
        (None, {"failed": 3}, ["Lower the upper end of max_lr"]),
        (every("failed", reason="CUDA out of memory at step 3"), {"failed": 2},
         ["2 trials ran out of memory"]),
        (every("failed", reason="worker died twice"), {"failed": 7},
         ["7 of 14 trials failed; the first: worker died twice"]),
    ],
)  # fmt: skip
def test_what_gives_cause_is_advised(advised, change, plan, said):
    text = advised(change, **plan)
    for words in said:
        assert words in text


@pytest.mark.parametrize(
    ("change", "plan", "unsaid"),
    [
        (best_params(**MIDDLE), {}, "edge"),
        (None, {"rejections": 2}, "refused"),
        (None, {"trials": 30}, "Too few"),
        (sampled_softmax, DONE, "tokens per parameter"),
        (promotion_has(n_params=10**9, epochs=1.0), DONE, "beyond four"),
        (every("failed", reason="CUDA out of memory at step 3"), {"failed": 2}, "diverged"),
    ],
)  # fmt: skip
def test_what_gives_no_cause_is_not(advised, change, plan, unsaid):
    assert unsaid not in advised(change, **plan)
