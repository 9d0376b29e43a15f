"""One training run in trouble: damage, foreign files, NaN, no room on the disk or in memory."""

import logging
import resource
from pathlib import Path

import pytest

from budgetsweep.errors import CheckpointError, DataError
from tests.support.tiny_runs import (
    assert_same_run,
    child,
    drive,
    put_nan_into_checkpoint,
    tiny_config,
    tiny_data,
)
from trainer.checkpoints import checkpoint
from trainer.data.shards.tokens import TokenData
from trainer.loop import train_run


@pytest.mark.parametrize("content", ["{}", "not json", "[]", '{"val-loss": 3.0}'])
def test_a_foreign_result_is_not_overwritten(data: TokenData, tmp_path: Path, content: str) -> None:
    (tmp_path / "eval.json").write_text(content)
    with pytest.raises(CheckpointError, match="damaged or not of budgetsweep"):
        drive(tiny_config(), data, tmp_path)
    assert (tmp_path / "eval.json").read_text() == content


def interrupted(data: TokenData, run_dir: Path) -> list[Path]:
    """Stop a run at step 8; returns its two checkpoints, the newest first."""
    config = tiny_config(checkpoint_seconds=0.0)
    assert drive(config, data, run_dir, "interrupt", 8)[0].status == "interrupted"
    return [path for _, path in checkpoint.checkpoint_files(run_dir)]


def test_a_damaged_checkpoint_costs_its_steps_and_nothing_else(
    data: TokenData, whole: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    newest, _ = interrupted(data, tmp_path)
    newest.write_bytes(newest.read_bytes()[:-100])
    with caplog.at_level(logging.WARNING, "budgetsweep"):
        result, _ = drive(tiny_config(), data, tmp_path)
    assert [str(newest) in message for message in caplog.messages] == [True]
    assert result.steps_executed == 21  # the step between the two checkpoints, once more
    assert_same_run(tmp_path, whole)


def test_with_both_checkpoints_damaged_the_run_starts_over(
    data: TokenData, whole: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for path in interrupted(data, tmp_path):
        path.write_bytes(b"damaged")
    with caplog.at_level(logging.WARNING, "budgetsweep"):
        result, _ = drive(tiny_config(), data, tmp_path)
    assert "the run starts over" in caplog.messages[-1]
    assert result.steps_executed == 28
    assert_same_run(tmp_path, whole)


def test_a_checkpoint_of_another_configuration_is_refused(data: TokenData, tmp_path: Path) -> None:
    interrupted(data, tmp_path)
    with pytest.raises(CheckpointError, match="belongs to another configuration"):
        drive(tiny_config(max_lr=2e-2), data, tmp_path)
    # ... and the folder is released: the right one goes on.
    assert drive(tiny_config(), data, tmp_path)[0].status == "complete"


def test_other_training_text_is_mentioned(
    data: TokenData, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    interrupted(data, tmp_path)
    with caplog.at_level(logging.WARNING, "budgetsweep"):
        assert drive(tiny_config(), tiny_data(seed=1), tmp_path)[0].status == "complete"
    assert "the training text is not the one that this run started with" in caplog.text


def test_a_loss_that_is_not_finite_ends_the_run_before_the_update(
    data: TokenData, tmp_path: Path
) -> None:
    newest, _ = interrupted(data, tmp_path)
    assert put_nan_into_checkpoint(tmp_path, tiny_config()) == 8
    before = newest.read_bytes()
    result, _ = drive(tiny_config(checkpoint_seconds=0.0), data, tmp_path)
    assert result.status == "failed"
    assert result.reason == "training loss became nan at step 9"
    assert (result.step, result.steps_executed) == (8, 9)
    assert newest.read_bytes() == before


def test_a_gradient_that_is_not_finite_ends_the_run_before_the_update(
    data: TokenData, tmp_path: Path
) -> None:
    # Finite weights, finite loss, and products in the backward pass that pass 3e38.
    interrupted(data, tmp_path)
    saved = checkpoint.load_latest(tmp_path, checkpoint.run_hash(tiny_config()))
    assert saved is not None
    saved["model"]["token_embeddings.weight"].mul_(1e-25)
    saved["model"]["position_embeddings.weight"].zero_()
    saved["model"]["ln.weight"].fill_(1e38)
    saved["model"]["blocks.0.ln_1.weight"].fill_(1e38)
    checkpoint.save(tmp_path, saved, 8)
    result, _ = drive(tiny_config(), data, tmp_path)
    assert result.status == "failed"
    assert result.reason in (
        "gradient norm became inf at step 9",
        "gradient norm became nan at step 9",
    )


def test_two_processes_do_not_train_in_one_folder(data: TokenData, tmp_path: Path) -> None:
    first = train_run(tiny_config(), data, tmp_path)
    next(first)
    with pytest.raises(CheckpointError, match="another process is training there"):
        next(train_run(tiny_config(), data, tmp_path))
    first.close()  # a caller that loses interest releases the folder
    assert drive(tiny_config(), data, tmp_path)[0].status == "complete"


def test_too_little_text_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="16 tokens and one window needs 17"):
        drive(tiny_config(), tiny_data(n_train=16), tmp_path)


def test_a_full_disk_is_one_clear_line_and_loses_nothing(
    data: TokenData, whole: Path, tmp_path: Path
) -> None:
    interrupted(data, tmp_path)
    before = sorted(tmp_path.iterdir())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))  # the weights alone need more
    try:
        with pytest.raises(CheckpointError) as caught:
            drive(tiny_config(checkpoint_seconds=0.0), data, tmp_path)
        with pytest.raises(CheckpointError) as at_the_end:
            drive(tiny_config(), data, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "checkpoint-00000009.pt: cannot be written (File too large)" in str(caught.value)
    assert f"{tmp_path}: cannot be written (File too large)" in str(at_the_end.value)
    assert "\n" not in str(caught.value) + str(at_the_end.value)
    assert sorted(tmp_path.iterdir()) == before  # nothing half-written, nothing lost
    assert drive(tiny_config(), data, tmp_path)[0].status == "complete"
    assert_same_run(tmp_path, whole)


def test_a_folder_that_cannot_be_made_is_one_clear_line(data: TokenData, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"cannot be written \(Not a directory\)"):
        drive(tiny_config(), data, tmp_path / "file" / "run")


@pytest.mark.slow
def test_running_out_of_memory_fails_the_run_and_not_the_process(tmp_path: Path) -> None:
    # The address space is limited to what is in use and 300 MB; the model alone needs 400 MB.
    script = """
        config = tiny_config(shape={"n_embd": 1024, "n_layer": 8})
        drive(tiny_config(num_training_steps=1), tiny_data(), run_dir / "small")
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 300_000_000, -1))
        result, _ = drive(config, tiny_data(), run_dir / "large")
        print(result.status, result.step, result.reason, sep="|")
        print(drive(tiny_config(), tiny_data(), run_dir / "next")[0].status)
    """
    with child(script, str(tmp_path)) as process:
        out, _ = process.communicate()
    failed, after = out.splitlines()
    assert failed.startswith("failed|0|out of memory after step 0: ")
    assert after == "complete"


@pytest.mark.gpu
def test_on_cuda_a_loss_that_is_not_finite_names_its_step(data: TokenData, tmp_path: Path) -> None:
    config = tiny_config(device="cuda")
    drive(config, data, tmp_path, "interrupt", 10)
    step = put_nan_into_checkpoint(tmp_path, config)
    result, _ = drive(config, data, tmp_path)
    assert result.reason == f"training loss became nan at step {step + 1}"
