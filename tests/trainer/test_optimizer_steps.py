"""Steps queued on a device compute what steps under the host's eyes do; here both on the CPU."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.utils import parameters_to_vector

from budgetsweep.errors import NonFiniteLoss
from tests.support.tiny_runs import (
    assert_same_run,
    curve,
    drive,
    put_nan_into_checkpoint,
    tiny_config,
    tiny_data,
    weights,
)
from tests.trainer.test_modern_run import modern, skewed_data
from trainer import optimizer_steps, run_state
from trainer.config import RunConfig
from trainer.data.device_tokens import DeviceTokens, tokens_on_device
from trainer.data.shards.tokens import TokenArray, TokenData
from trainer.hardware.compilation import training_forward
from trainer.hardware.device import autocast_context
from trainer.objectives import NextToken
from trainer.optim import build_optimizer
from trainer.optimizer_steps import (
    LOGGED_STEPS,
    BlockingSteps,
    QueuedSteps,
    Replay,
    Steps,
    Training,
)
from trainer.throughput import StepTimer

CPU = torch.device("cpu")
DATA = skewed_data()
CONFIGS = {
    "gpt2": tiny_config(),
    "modern": modern(),
    "micro-batches, clipped": modern(grad_accumulation_steps=3, grad_clip=1e-2),
    "no clipping": tiny_config(grad_clip=None),
}


def small(steps: int, **shape: Any) -> RunConfig:
    """A modern run of one block and short micro-batches."""
    return modern(
        num_training_steps=steps, shape={"n_layer": 1, **shape}, batch_size=2, num_evals=2
    )


def training_of(config: RunConfig, data: TokenData = DATA, resident: bool = True) -> Training:
    torch.manual_seed(config.seed)
    objective = NextToken(config, CPU)
    objective.read(data)
    if resident:
        objective.keep_on_device(data.train)
    model = objective.build_model()
    return Training(
        config, CPU, objective, model, training_forward(model, compiled=False),
        build_optimizer(model, config, CPU), autocast_context(config, CPU),
    )  # fmt: skip


def as_a_graph(work: Callable[[], None], _: torch.device) -> Replay:
    """Does what `cuda_graph` does, but that it replays by calling."""
    for _ in range(optimizer_steps.WARMUP_STEPS):
        work()
    return work


def taken(steps: Steps, first: int, last: int) -> tuple[list[float], float | None]:
    for step in range(first, last):
        steps.take(step)
    return steps.collect()


@pytest.mark.parametrize("name", CONFIGS)
def test_batches_made_on_the_device_are_those_of_the_host(name: str) -> None:
    objective = training_of(CONFIGS[name]).objective
    assert isinstance(objective, NextToken)
    for first, count in ((0, 5), (17, 3), (200, 2)):  # into later epochs
        inputs = [torch.from_numpy(each) for each in objective.step_inputs(first, count)]
        for step in range(count):
            for micro in range(CONFIGS[name].grad_accumulation_steps):
                made = objective.gather([each[step, micro] for each in inputs])
                expected = objective.batch(first + step, micro)
                assert torch.equal(made.ids, expected.ids)
                assert (made.sample is None) == (expected.sample is None)
                if made.sample is not None and expected.sample is not None:
                    assert torch.equal(made.sample.entries, expected.sample.entries)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("capture", [None, as_a_graph], ids=["queued", "graph"])
def test_queued_steps_compute_what_the_hosts_do(name: str, capture: Any) -> None:
    config = CONFIGS[name].with_changes(num_training_steps=40)
    here, there = training_of(config), training_of(config)
    torch.manual_seed(1)
    expected, norm = taken(BlockingSteps(here), 0, 12)
    torch.manual_seed(1)
    losses, their_norm = taken(QueuedSteps(there, 0, capture), 0, 12)
    assert len(losses) == 12
    # The learning rate is a float32 there.
    np.testing.assert_allclose(losses, expected, rtol=1e-4)
    assert their_norm == pytest.approx(norm, rel=1e-2)
    ours, theirs = (parameters_to_vector(each.model.parameters()) for each in (here, there))
    assert (ours - theirs).norm() < 3e-3 * theirs.norm()  # Muon iterates in bf16


@pytest.mark.parametrize("name", ["gpt2", "modern"])
@pytest.mark.parametrize("at", [0, 7])
def test_a_capture_leaves_no_trace(name: str, at: int) -> None:
    """Neither where the optimiser is new nor where it has a state: equal bit for bit."""
    config = CONFIGS[name].with_changes(num_training_steps=60)
    results = []
    for capture in (None, as_a_graph):
        training = training_of(config)
        taken(QueuedSteps(training), 0, at)
        torch.manual_seed(1)
        results.append((taken(QueuedSteps(training, at, capture), at, at + 9), training.model))
    (queued, model), (replayed, other) = results
    assert queued == replayed
    for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_losses_come_in_order_however_often_they_are_asked_for() -> None:
    config = small(2 * LOGGED_STEPS + 9, p_dropout=0.0)
    all_at_once, _ = taken(QueuedSteps(training_of(config)), 0, config.steps)
    steps, parts = QueuedSteps(training_of(config)), []
    for first, last in ((0, 1), (1, 5), (5, 5 + LOGGED_STEPS), (5 + LOGGED_STEPS, config.steps)):
        parts += taken(steps, first, last)[0]
    assert len(set(all_at_once)) == config.steps
    assert parts == all_at_once


def test_a_step_that_cannot_be_captured_is_queued(caplog: pytest.LogCaptureFixture) -> None:
    def refuse(work: Callable[[], None], _: torch.device) -> Replay:
        work()
        raise RuntimeError("operation not permitted when stream is capturing\nand so on")

    config = CONFIGS["modern"].with_changes(num_training_steps=60)
    expected = taken(QueuedSteps(training_of(config)), 0, 5)
    with caplog.at_level(logging.WARNING, "budgetsweep"):
        assert taken(QueuedSteps(training_of(config), 0, refuse), 0, 5) == expected
    assert "(operation not permitted when stream is capturing)" in caplog.text
    assert "cuda_graph: off" in caplog.text


def test_no_memory_for_a_graph_ends_the_run() -> None:
    def too_large(work: Callable[[], None], _: torch.device) -> Replay:
        raise torch.OutOfMemoryError("CUDA out of memory")

    steps = QueuedSteps(training_of(tiny_config(num_training_steps=60)), 0, too_large)
    with pytest.raises(torch.OutOfMemoryError):
        steps.take(0)


def test_few_steps_are_not_captured() -> None:
    def never(work: Callable[[], None], _: torch.device) -> Replay:
        raise AssertionError

    config = tiny_config(num_training_steps=optimizer_steps.LEAST_CAPTURED_STEPS + 5)
    taken(QueuedSteps(training_of(config), 6, never), 6, 8)
    with pytest.raises(AssertionError):
        QueuedSteps(training_of(config), 5, never).take(5)


@pytest.mark.parametrize("ahead", [0, LOGGED_STEPS])
def test_a_loss_that_is_not_finite_is_named_later(ahead: int) -> None:
    training = training_of(tiny_config(num_training_steps=4 * LOGGED_STEPS))
    steps = QueuedSteps(training)
    taken(steps, 0, 3)
    with torch.no_grad():
        training.model.ln.bias[0] = float("nan")
    with pytest.raises(NonFiniteLoss, match="training loss became nan at step 4"):
        taken(steps, 3, 5 + ahead)


def test_a_gradient_that_is_not_finite_is_named_later() -> None:
    training = training_of(tiny_config(num_training_steps=60))
    steps = QueuedSteps(training)
    taken(steps, 0, 2)
    weight = training.model.get_parameter("ln.weight")
    weight.register_hook(lambda grad: grad * float("inf"))
    with pytest.raises(FloatingPointError, match=r"gradient norm became (inf|nan) at step 3"):
        taken(steps, 2, 3)


def take_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let runs on the CPU take their steps as those on CUDA do."""

    def device_steps(training: Training, first_step: int) -> Steps:
        objective: Any = training.objective
        objective.keep_on_device(objective.data.train)
        return QueuedSteps(training, first_step, as_a_graph)

    monkeypatch.setattr(run_state, "steps_of", device_steps)


@pytest.fixture
def on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    take_on_the_device(monkeypatch)


@pytest.mark.slow
@pytest.mark.usefixtures("on_the_device")
@pytest.mark.parametrize("at_step", [1, 41, 66])
def test_an_interrupted_run_of_queued_steps_ends_as_the_whole_one(
    tmp_path: Path, at_step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_state, "PROGRESS_SECONDS", 0.0)  # an event at each step
    config = small(70)
    whole, _ = drive(config, DATA, tmp_path / "whole")
    first, _ = drive(config, DATA, tmp_path / "parts", "interrupt", at_step)
    assert (first.status, first.step) == ("interrupted", at_step)
    second, _ = drive(config, DATA, tmp_path / "parts")
    assert (second.status, second.steps_executed) == ("complete", 70)
    assert second.val_loss_nats == whole.val_loss_nats
    assert_same_run(tmp_path / "parts", tmp_path / "whole")


@pytest.mark.usefixtures("on_the_device")
def test_a_run_of_queued_steps_fails_at_the_step_that_was_not_finite(tmp_path: Path) -> None:
    config = small(60)
    drive(config, DATA, tmp_path, "interrupt", 15)
    step = put_nan_into_checkpoint(tmp_path, config)
    result, _ = drive(config, DATA, tmp_path)
    assert result.status == "failed"
    assert result.reason == f"training loss became nan at step {step + 1}"


def test_a_run_goes_on_where_steps_are_taken_otherwise(tmp_path: Path) -> None:
    """From a CPU to a GPU and back: what the optimiser remembers comes along."""
    config = small(60, p_dropout=0.0)
    drive(config, DATA, tmp_path / "whole")
    drive(config, DATA, tmp_path / "parts", "interrupt", 15)
    with pytest.MonkeyPatch.context() as patch:
        take_on_the_device(patch)
        drive(config, DATA, tmp_path / "parts", "interrupt", 48)
    result, _ = drive(config, DATA, tmp_path / "parts")
    assert result.status == "complete"
    for ours, theirs in zip(curve(tmp_path / "parts"), curve(tmp_path / "whole"), strict=True):
        ours_loss, theirs_loss = float(ours["train_loss_nats"]), float(theirs["train_loss_nats"])
        assert ours_loss == pytest.approx(theirs_loss, rel=1e-3)
    assert weights(tmp_path / "parts").keys() == weights(tmp_path / "whole").keys()


def test_tokens_on_device_are_those_on_disk() -> None:
    ids = np.arange(70_000, dtype=np.int64) % 65_536
    tokens = TokenArray.from_arrays([ids[:40_000], ids[40_000:]])
    there = DeviceTokens(tokens, CPU)
    starts = np.array([0, 39_995, 65_530, 69_990])
    expected = torch.from_numpy(tokens.gather(starts, 10))
    assert torch.equal(there.windows(torch.from_numpy(starts), 10), expected)
    assert tokens_on_device(tokens, CPU) is tokens_on_device(tokens, CPU)


def test_a_text_too_large_for_the_device_stays_on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.data.device_tokens.LARGEST_TEXT_ON_DEVICE_BYTES", 5999)
    data = tiny_data()
    training = training_of(tiny_config(num_training_steps=60), data)
    assert not training.objective.gathers_on_device
    losses, _ = taken(QueuedSteps(training, 0, as_a_graph), 0, 4)
    assert len(losses) == 4


def test_noise_to_measure_with_moves_no_weight() -> None:
    training = StepTimer(modern(), CPU).training
    before = [each.clone() for each in training.model.parameters()]
    losses, norm = taken(QueuedSteps(training, 0, as_a_graph), 0, 3)
    assert norm is not None
    assert len(set(losses)) == 3
    for ours, theirs in zip(training.model.parameters(), before, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.gpu
@pytest.mark.parametrize("name", CONFIGS)
def test_on_cuda_a_captured_step_computes_what_a_queued_one_and_the_cpu_do(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = CONFIGS[name].with_changes(
        model=CONFIGS[name].model.model_copy(update={"p_dropout": 0.0}),
        num_training_steps=100,
    )
    losses = {}
    for where, changes in {
        "graph": {"device": "cuda"},
        "again": {"device": "cuda"},
        "queued": {"device": "cuda", "cuda_graph": "off"},
        "cpu": {},
    }.items():
        drive(config.with_changes(**changes), DATA, tmp_path / where)
        losses[where] = [float(row["train_loss_nats"]) for row in curve(tmp_path / where)]
    assert not caplog.records  # a capture that failed would have said so
    assert losses["again"] == losses["graph"]
    assert losses["graph"] == pytest.approx(losses["queued"], rel=1e-3)
    assert losses["graph"] == pytest.approx(losses["cpu"], rel=2e-2)


@pytest.mark.gpu
def test_on_cuda_dropout_draws_anew_at_each_replay() -> None:
    config = tiny_config(device="cuda", num_training_steps=60, max_lr=0.0, min_lr=0.0,
                         shape={"p_dropout": 0.5})  # fmt: skip
    training = StepTimer(config, torch.device("cuda")).training
    assert training.model.get_submodule("dropout").p == 0.5
    steps = QueuedSteps(training, 0, optimizer_steps.cuda_graph)
    steps.take(0)
    for _ in range(7):  # the same windows, another mask
        steps._ahead_from += 1
        steps.take(steps._ahead_from)
    assert len(set(steps.collect().losses)) == 8
