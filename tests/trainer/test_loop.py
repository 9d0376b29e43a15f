"""One training run: what it computes, and that no interruption changes it."""

import json
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml

from budgetsweep.errors import BudgetExceeded, CheckpointError
from model.decoder import DecoderLM
from model.flops import flops_per_token
from tests.support.tiny_runs import (
    assert_same_run,
    child,
    curve,
    drive,
    tiny_config,
    weights,
)
from trainer import run_state
from trainer.checkpoints import checkpoint
from trainer.checkpoints.artefacts import curve_csv
from trainer.config import RunConfig
from trainer.data.sampler import WindowSampler
from trainer.data.shards.tokens import TokenData
from trainer.events import Checkpointed, Point, Progress
from trainer.flop_meter import read_executed_steps
from trainer.hardware import compilation
from trainer.loop import train_run


def points_of(events: list[Progress | Point | Checkpointed]) -> list[Point]:
    return [event for event in events if isinstance(event, Point)]


def test_a_run_from_start_to_end(data: TokenData, tmp_path: Path) -> None:
    config = tiny_config(num_training_steps=60, shape={"p_dropout": 0.0}, num_reports=6)
    result, events = drive(config, data, tmp_path / "new" / "folder")
    points = points_of(events)
    assert [p.step for p in points] == [10, 15, 20, 30, 40, 45, 50, 60]
    assert [p.step for p in points if p.val_loss_nats is not None] == [15, 30, 45, 60]
    assert points[-1].tokens == 60 * 4 * 16 * 2 == result.tokens == config.total_tokens
    assert points[-1].flops == flops_per_token(config.model, 16) * config.total_tokens
    assert (result.status, result.step, result.steps_executed) == ("complete", 60, 60)
    assert result.val_loss_nats == points[-1].val_loss_nats
    assert result.val_bits_per_byte == pytest.approx(result.val_loss_nats / np.log(2))
    assert result.train_loss_nats == points[-1].train_loss_nats
    assert result.val_tokens == 25 * 15
    # Each token is the one before plus 0 ... 3: what can be learnt is log(4) = 1.39 of log(257).
    assert result.val_loss_nats < 4.0 < np.log(257)
    assert isinstance(events[0], Progress)
    assert points[-1].seconds == result.train_seconds > 0


def test_the_files_of_a_complete_run(data: TokenData, whole: Path) -> None:
    names = sorted(path.name for path in whole.iterdir())
    assert names == [
        "config.yaml", "curve.csv", "eval.json", "meter.bin", "meter.lock", "model.pt",
    ]  # fmt: skip
    saved = yaml.safe_load((whole / "config.yaml").read_text())
    assert RunConfig.model_validate(saved) == tiny_config()
    model = DecoderLM.from_config(tiny_config().model)
    model.load_state_dict(weights(whole))
    report = json.loads((whole / "eval.json").read_text())
    assert report["val-loss"] == report["val_loss_nats"]
    assert report["val-perplexity"] == pytest.approx(np.exp(report["val-loss"]))
    assert (report["data_checksum"], report["val_checksum"]) == ("train 0", "val 0")
    # The weights are those that were evaluated: worked out without the trainer's evaluation.
    model.eval()
    ids = torch.from_numpy(data.val[0:400].astype(np.int64)).view(25, 16)
    loss = F.cross_entropy(model(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    assert loss.item() == pytest.approx(report["val-loss"], rel=1e-5)
    rows = curve(whole)
    assert rows[0]["val_loss_nats"] == ""
    assert float(rows[-1]["val_loss_nats"]) == report["val_loss_nats"]


def test_the_steps_are_those_of_plain_pytorch(data: TokenData, tmp_path: Path) -> None:
    # The same run written down with full logits, torch's losses, optimiser, clipping, scheduler.
    config = tiny_config(
        num_training_steps=12, num_reports=12, shape={"p_dropout": 0.0}, grad_clip=0.5
    )
    _, events = drive(config, data, tmp_path)
    torch.manual_seed(config.seed)
    model = DecoderLM.from_config(config.model)
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1.0, betas=(0.9, 0.95), eps=1e-8)
    warm = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda t: (
            1e-2 * t / 3 if t < 3 else 1e-3 + 9e-3 * 0.5 * (1 + np.cos(np.pi * (t - 3) / (12 - 3)))
        ),
    )
    sampler = WindowSampler(data.train, 8, 16, config.seed)  # one large batch for two small
    for step, point in enumerate(points_of(events)):
        ids = torch.from_numpy(sampler.batch(step))
        loss = F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        assert point.lr == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        warm.step()
        assert point.train_loss_nats == pytest.approx(loss.item(), rel=2e-5)
        assert point.grad_norm == pytest.approx(norm.item(), rel=2e-4)


@pytest.mark.parametrize("at_step", [0, 1, 3, 4, 5, 10, 13, 19, 20])
def test_an_interrupted_run_ends_as_the_whole_one(
    data: TokenData, whole: Path, tmp_path: Path, at_step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_state, "PROGRESS_SECONDS", 0.0)  # an event at each step
    first, events = drive(tiny_config(), data, tmp_path, "interrupt", at_step)
    assert (first.status, first.step) == ("interrupted", at_step)
    assert events[-1] == Checkpointed(at_step, steps_executed=at_step)
    second, more = drive(tiny_config(), data, tmp_path)
    assert second.status == "complete"
    assert second.steps_executed == 20  # nothing lost, nothing recomputed
    told = points_of(more)  # the whole curve: those of the first attempt come again, equal
    assert [point.step for point in told] == [3, 5, 6, 9, 10, 11, 14, 15, 17, 20]
    assert told[: len(points_of(events))] == points_of(events)
    assert second.train_seconds >= first.train_seconds
    assert_same_run(tmp_path, whole)


def test_a_run_interrupted_at_every_step_ends_as_the_whole_one(
    data: TokenData, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_state, "PROGRESS_SECONDS", 0.0)
    for step in range(21):
        result, _ = drive(tiny_config(), data, tmp_path, "interrupt", step)
        assert (result.status, result.step) == ("interrupted", step)
    assert drive(tiny_config(), data, tmp_path)[0].steps_executed == 20
    assert_same_run(tmp_path, whole)


def test_bf16_resumes_bit_for_bit_too(data: TokenData, tmp_path: Path) -> None:
    config = tiny_config(autocast="bf16", num_training_steps=10)
    for name, at_step in (("whole", 99), ("parts", 4)):
        result, _ = drive(config, data, tmp_path / name, "interrupt", at_step)
        if result.status == "interrupted":
            result, _ = drive(config, data, tmp_path / name)
        assert (result.status, result.precision) == ("complete", "bf16")
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    drive(tiny_config(autocast="off", num_training_steps=10), data, tmp_path / "fp32")
    assert curve(tmp_path / "fp32") != curve(tmp_path / "whole")


@pytest.mark.slow
def test_a_killed_run_ends_as_the_whole_one_and_its_spending_is_known(
    data: TokenData, whole: Path, tmp_path: Path
) -> None:
    # Steps 0 ... 5 with a checkpoint at 2 and 4; SIGKILL after step 5 has been computed.
    script = """
        run = train_run(tiny_config(checkpoint_seconds=0.0), tiny_data(), run_dir)
        for event in run:
            if type(event).__name__ == "Checkpointed" and event.step == 4:
                break
        for event in run:
            if type(event).__name__ == "Point":
                print(event.step, flush=True)
                sys.stdin.read()
    """
    with child(script, str(tmp_path)) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "5\n"
        process.send_signal(signal.SIGKILL)
    assert read_executed_steps(tmp_path) == 5
    files = checkpoint.checkpoint_files(tmp_path)
    assert [step for step, _ in files] == [4, 3]
    result, events = drive(tiny_config(), data, tmp_path)
    assert (result.status, result.step) == ("complete", 20)
    assert result.steps_executed == 21  # step 5 was computed twice
    assert [point.step for point in points_of(events)][:2] == [3, 5]
    assert_same_run(tmp_path, whole)


def test_a_pruned_run_leaves_no_checkpoint(data: TokenData, tmp_path: Path) -> None:
    config = tiny_config(checkpoint_seconds=0.0)
    result, events = drive(config, data, tmp_path, "prune", 10)
    assert (result.status, result.step, result.reason) == ("pruned", 10, None)
    assert any(isinstance(event, Checkpointed) for event in events)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["meter.bin", "meter.lock"]
    val = [point.val_loss_nats for point in points_of(events) if point.val_loss_nats is not None]
    assert result.val_loss_nats == val[-1]


@pytest.mark.parametrize("left", ["", "step,tokens\n1,", "step,unknown\n1,2\n", "\0"])
def test_a_complete_run_without_its_curves_is_complete(
    data: TokenData, whole: Path, tmp_path: Path, left: str
) -> None:
    (tmp_path / "eval.json").write_bytes((whole / "eval.json").read_bytes())
    assert drive(tiny_config(), data, tmp_path)[1] == []
    (tmp_path / "curve.csv").write_text(left)
    result, events = drive(tiny_config(), data, tmp_path)
    assert (result.status, events) == ("complete", [])


def test_a_complete_run_is_not_trained_again(data: TokenData, whole: Path) -> None:
    result, events = drive(tiny_config(output_dir="other name"), data, whole, "prune", 5)
    assert (result.status, result.steps_executed) == ("complete", 20)
    # Its curves come again, for a caller that was killed before it had stored them.
    assert curve_csv(points_of(events)) == (whole / "curve.csv").read_text()
    assert len(events) == len(points_of(events)) == 10
    assert result.artefacts == {
        "model": str(whole / "model.pt"),
        "config": str(whole / "config.yaml"),
        "curve": str(whole / "curve.csv"),
        "eval": str(whole / "eval.json"),
    }
    assert result.val_loss_nats == json.loads((whole / "eval.json").read_text())["val-loss"]
    with pytest.raises(CheckpointError, match="holds the finished run of another configuration"):
        drive(tiny_config(seed=1), data, whole)


def test_the_budget_is_never_passed(data: TokenData, tmp_path: Path) -> None:
    config = tiny_config()
    per_step = flops_per_token(config.model, 16) * config.tokens_per_step
    exact = config.with_changes(budget_flops=20 * per_step)
    assert drive(exact, data, tmp_path / "exact")[0].status == "complete"
    short = config.with_changes(budget_flops=20 * per_step - 1)
    with pytest.raises(BudgetExceeded, match="step 20 would bring the run to"):
        drive(short, data, tmp_path / "short")
    assert read_executed_steps(tmp_path / "short") == 19


def test_other_conventions_charge_differently(data: TokenData, tmp_path: Path) -> None:
    config = tiny_config(num_training_steps=2, num_reports=1, num_evals=1, convention="mac")
    (point,) = points_of(drive(config, data, tmp_path)[1])
    assert point.flops == flops_per_token(config.model, 16, "mac") * config.total_tokens


def test_the_random_state_of_the_caller_is_left_alone(
    data: TokenData, whole: Path, tmp_path: Path
) -> None:
    # Two runs in turn in one process, and a caller that draws numbers in between.
    torch.manual_seed(123)
    expected = torch.rand(1000)
    torch.manual_seed(123)
    drawn = []
    runs = [train_run(tiny_config(), data, tmp_path / name) for name in "ab"]
    for _ in range(5):
        for run in runs:
            next(run)
            drawn.append(torch.rand(1))
            assert sys.float_info.min / 2 > 0.0  # nor the treatment of denormals
    for run in runs:
        drawn.extend(torch.rand(1) for _ in run)
    assert torch.equal(torch.cat(drawn), expected[: len(drawn)])
    assert_same_run(tmp_path / "a", whole)
    assert_same_run(tmp_path / "b", whole)


def test_seeds_differ_in_weights_order_and_dropout(data: TokenData, tmp_path: Path) -> None:
    first = points_of(drive(tiny_config(seed=0), data, tmp_path / "0")[1])
    second = points_of(drive(tiny_config(seed=1), data, tmp_path / "1")[1])
    assert all(a.train_loss_nats != b.train_loss_nats for a, b in zip(first, second, strict=True))


def test_progress_comes_by_the_clock(
    data: TokenData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_state, "PROGRESS_SECONDS", 3600.0)
    rare = drive(tiny_config(), data, tmp_path / "rare")[1]
    assert [event for event in rare if isinstance(event, Progress)] == [Progress(0, 20, 0, 0.0)]
    monkeypatch.setattr(run_state, "PROGRESS_SECONDS", 0.0)
    often = drive(tiny_config(), data, tmp_path / "often")[1]
    steps = [event.step for event in often if isinstance(event, Progress)]
    assert steps == [0, 1, 2, 4, 7, 8, 12, 13, 16, 18, 19]  # all where no point says it
    speeds = [event.tokens_per_second for event in often if isinstance(event, Progress)]
    assert all(speed > 0 for speed in speeds[1:])


def test_a_run_of_fewer_steps_than_reports(data: TokenData, tmp_path: Path) -> None:
    config = tiny_config(num_training_steps=3, num_reports=100, num_evals=5, num_warmup_steps=0)
    result, events = drive(config, data, tmp_path)
    assert [point.step for point in points_of(events)] == [1, 2, 3]
    assert result.val_loss_nats is not None


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")
def test_a_compiled_run_resumes_bit_for_bit_and_computes_the_same(
    data: TokenData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Traced and differentiated as always, but not turned into C++, which takes half a minute.
    monkeypatch.setattr(compilation, "BACKEND", "aot_eager")
    plain = tiny_config(num_training_steps=6, shape={"p_dropout": 0.0})
    config = plain.with_changes(compile="on")
    drive(plain, data, tmp_path / "plain")
    whole, _ = drive(config, data, tmp_path / "whole")
    assert whole.compiled is True
    drive(config, data, tmp_path / "parts", "interrupt", 3)
    drive(config, data, tmp_path / "parts")
    assert_same_run(tmp_path / "parts", tmp_path / "whole")
    for a, b in zip(curve(tmp_path / "plain"), curve(tmp_path / "whole"), strict=True):
        assert float(b["train_loss_nats"]) == pytest.approx(float(a["train_loss_nats"]), rel=1e-5)


@pytest.mark.gpu
def test_on_cuda_a_resumed_run_continues_the_same_one(data: TokenData, tmp_path: Path) -> None:
    config = tiny_config(device="cuda", autocast="auto")
    whole, _ = drive(config, data, tmp_path / "whole")
    drive(config, data, tmp_path / "parts", "interrupt", 10)
    parts, _ = drive(config, data, tmp_path / "parts")
    assert parts.steps_executed == 20
    assert parts.val_loss_nats == pytest.approx(whole.val_loss_nats, rel=1e-3)
    assert whole.peak_memory_bytes is not None
