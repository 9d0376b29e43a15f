"""A run of the modern recipe: resumed, charged, measured and read back like any other."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from budgetsweep.config import load_yaml
from budgetsweep.errors import BudgetExceeded
from model.decoder import DecoderLM
from model.flops import flops_per_token
from tests.support.tiny_runs import assert_same_run, curve, drive, tiny_config, tiny_data, weights
from trainer import run_state
from trainer.config import RunConfig
from trainer.data.shards.tokens import TokenArray, TokenData
from trainer.evaluation import validate
from trainer.events import Point
from trainer.export.formats import open_model
from trainer.flop_meter import read_executed_steps
from trainer.hardware.device import autocast_context
from trainer.objectives import NextToken

CPU = torch.device("cpu")


def modern(**changes: Any) -> RunConfig:
    """A tiny run with all options, a sampled softmax, Muon, and dropout."""
    return tiny_config(**{"recipe": "modern", "head_samples": 64, **changes})


def skewed_data() -> TokenData:
    """Some ids are frequent and most are rare, as in text; a token depends on the one before."""
    rng = np.random.default_rng(0)
    draws = np.minimum(rng.zipf(1.5, 4000) - 1, 255)
    ids = (draws + np.roll(draws, 1) % 3) % 256
    return dataclasses.replace(
        tiny_data(),
        train=TokenArray.from_arrays([ids[:3600].astype(np.uint16)]),
        val=TokenArray.from_arrays([ids[3600:].astype(np.uint16)]),
    )


@pytest.fixture(scope="module")
def data() -> TokenData:
    return skewed_data()


@pytest.fixture(scope="module")
def whole(data: TokenData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("whole")
    assert drive(modern(), data, run_dir)[0].status == "complete"
    return run_dir


@pytest.mark.parametrize("at_step", [1, 5, 13])
def test_an_interrupted_run_ends_as_the_whole_one(
    data: TokenData, whole: Path, tmp_path: Path, at_step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_state, "PROGRESS_SECONDS", 0.0)  # an event at each step
    first, events = drive(modern(), data, tmp_path, "interrupt", at_step)
    assert (first.status, first.step) == ("interrupted", at_step)
    second, more = drive(modern(), data, tmp_path)
    assert (second.status, second.steps_executed) == ("complete", 20)
    before = [event for event in events if isinstance(event, Point)]
    after = [event for event in more if isinstance(event, Point)]
    assert after[: len(before)] == before
    assert_same_run(tmp_path, whole)


def test_equal_seeds_give_equal_runs_and_others_do_not(
    data: TokenData, whole: Path, tmp_path: Path
) -> None:
    drive(modern(), data, tmp_path / "again")
    assert_same_run(tmp_path / "again", whole)
    for name, changes in {
        "seed": {"seed": 1}, "samples": {"head_samples": 63}, "optimizer": {"optimizer": "adamw"},
    }.items():  # fmt: skip
        drive(modern(**changes), data, tmp_path / name)
        assert curve(tmp_path / name) != curve(whole)


def test_the_meter_charges_the_sampled_head(data: TokenData, tmp_path: Path) -> None:
    for convention in ("nanogpt", "matmul", "mac"):
        config = modern(convention=convention, num_training_steps=3)
        result, events = drive(config, data, tmp_path / convention)
        points = [event for event in events if isinstance(event, Point)]
        per_token = flops_per_token(config.model, 16, convention, 65)
        assert points[-1].flops == 3 * config.flops_per_step(convention)
        muon = 3 * config.optimizer_kind.flops_per_step(config.model, convention)
        assert points[-1].flops == per_token * result.tokens + muon
        assert result.tokens == 3 * 2 * 4 * 16


def test_the_budget_is_never_passed(data: TokenData, tmp_path: Path) -> None:
    config = modern(budget_flops=5 * modern().flops_per_step("nanogpt") - 1)
    with pytest.raises(BudgetExceeded, match="step 5 would bring the run to"):
        drive(config, data, tmp_path)
    assert read_executed_steps(tmp_path) == 4


def trained(run_dir: Path) -> DecoderLM:
    return open_model(run_dir).model.eval()


def test_the_training_loss_estimates_the_full_loss(data: TokenData, whole: Path) -> None:
    """On the run's own batches; Jensen: the estimate is a little lower on average."""
    objective = NextToken(modern(), CPU)
    objective.read(data)
    model = trained(whole)
    pairs = []
    with torch.no_grad():
        for step in range(60):
            batch = objective.batch(step, 0)
            sampled = objective.loss(model.hidden, model, batch)
            full = objective.loss(model.hidden, model, batch._replace(sample=None))
            hidden = model.hidden(batch.ids[:, :-1]).flatten(0, 1)
            written_out = torch.nn.functional.cross_entropy(
                model.token_logits(hidden), batch.ids[:, 1:].flatten()
            )
            torch.testing.assert_close(full, written_out)
            pairs.append((float(sampled), float(full)))
    low = np.array([full - sampled for sampled, full in pairs])
    assert 0.0 < low.mean() < 0.05
    assert np.abs(low).max() < 0.3
    assert np.mean([full for _, full in pairs]) < np.log(257) - 1.0  # something was learnt


def test_the_saved_model_gives_the_validation_loss_again(data: TokenData, whole: Path) -> None:
    saved = RunConfig.model_validate(load_yaml(whole / "config.yaml"))
    assert saved == modern()
    loaded = open_model(whole)
    assert loaded.config == modern()
    assert loaded.shape == modern().model
    assert loaded.tokenizer == "bytes"
    assert loaded.model.state_dict().keys() == weights(whole).keys()
    again = validate(
        loaded.model, data.val, seq_len=16, batch_size=4, device=CPU,
        autocast=autocast_context(saved, CPU), bytes_per_token=1.0,
    )  # fmt: skip
    assert again.loss_nats == pytest.approx(float(curve(whole)[-1]["val_loss_nats"]), rel=1e-6)
    # All of the vocabulary counts there, whatever training compared with.
    model = loaded.model.eval()
    ids = torch.from_numpy(data.val[0:400].astype(np.int64)).view(25, 16)
    with torch.no_grad():
        logits = model(ids)[:, :-1].flatten(0, 1)
    loss = torch.nn.functional.cross_entropy(logits, ids[:, 1:].flatten())
    assert loss.item() == pytest.approx(again.loss_nats, rel=1e-5)


def test_the_head_bias_is_that_of_the_training_text(data: TokenData, whole: Path) -> None:
    counts = np.bincount(data.train[0 : len(data.train)], minlength=257) + 0.5
    expected = np.log(counts / counts.sum())
    bias = weights(whole)["head_bias"].numpy()
    np.testing.assert_allclose(bias - bias[0], expected - expected[0], rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_a_run_of_each_schedule_and_optimizer_learns(tmp_path: Path) -> None:
    """Nothing of the random walk is known at first: log(257) = 5.55 nats."""
    for optimizer, schedule in (("adamw", "wsd"), ("muon", "linear")):
        config = modern(
            optimizer=optimizer, schedule=schedule, num_training_steps=60, head_samples=128,
            shape={"p_dropout": 0.0},
        )  # fmt: skip
        result, _ = drive(config, tiny_data(), tmp_path / optimizer)
        assert result.val_loss_nats is not None
        assert result.val_loss_nats < np.log(257) - 1.0


@pytest.mark.gpu
def test_on_cuda_a_modern_run_is_the_same_twice_and_near_the_cpus(
    data: TokenData, tmp_path: Path
) -> None:
    losses = {}
    for name, device in (("first", "cuda"), ("second", "cuda"), ("cpu", "cpu")):
        config = modern(device=device, autocast="off")
        config = config.with_changes(model=config.model.model_copy(update={"p_dropout": 0.0}))
        result, _ = drive(config, data, tmp_path / name)
        losses[name] = result.val_loss_nats
    assert losses["first"] == losses["second"]
    assert losses["cpu"] == pytest.approx(losses["first"], rel=1e-2)
