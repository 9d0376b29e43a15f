"""Checkpoints: whole or not there, checked before they are believed."""

import hashlib
import io
import logging
import pickle
import resource
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from budgetsweep.errors import CheckpointError
from tests.support.tiny_runs import tiny_config
from trainer.checkpoints.checkpoint import (
    MAGIC,
    checkpoint_files,
    load_latest,
    remove_checkpoints,
    run_hash,
    save,
)


def state(step: int) -> dict[str, Any]:
    return {
        "config_hash": "mine",
        "step": step,
        "weights": torch.arange(1000.0) + step,
        "flops": 10**25 + step,
        "points": [{"val_loss_nats": None, "lr": 0.1}],
    }


@contextmanager
def file_size_limit(n_bytes: int) -> Iterator[None]:
    """A full disk, as a process meets it: writes past the limit fail in the kernel."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def steps(folder: Path) -> list[int]:
    return [step for step, _ in checkpoint_files(folder)]


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    assert load_latest(tmp_path, "mine") is None
    assert load_latest(tmp_path / "missing", "mine") is None
    save(tmp_path, state(7), 7)
    loaded = load_latest(tmp_path, "mine")
    assert loaded is not None
    assert torch.equal(loaded.pop("weights"), state(7).pop("weights"))
    expected = state(7)
    del expected["weights"]
    assert loaded == expected


def test_the_last_two_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 5, 9):
        save(tmp_path, state(step), step)
    assert steps(tmp_path) == [9, 5]
    # A run that went back to 5 rewrites history: what came later is not newer than what it writes.
    save(tmp_path, state(6), 6)
    assert steps(tmp_path) == [6, 5]
    remove_checkpoints(tmp_path)
    assert list(tmp_path.iterdir()) == []


@settings(deadline=None, max_examples=60)
@given(where=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
def test_any_flipped_byte_is_noticed(where: float, flip: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save(folder, state(1), 1)
        path = save(folder, state(2), 2)
        data = bytearray(path.read_bytes())
        data[int(where * len(data))] ^= flip
        path.write_bytes(data)
        loaded = load_latest(folder, "mine")
        assert loaded is not None
        assert loaded["step"] == 1


@pytest.mark.parametrize("length", [0, 10, 48, 49, 3000, -1])
def test_a_truncated_one_is_passed_over_with_one_line(
    tmp_path: Path, length: int, caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path, state(1), 1)
    path = save(tmp_path, state(2), 2)
    path.write_bytes(path.read_bytes()[:length])
    with caplog.at_level(logging.WARNING, "budgetsweep"):
        loaded = load_latest(tmp_path, "mine")
    assert loaded is not None
    assert loaded["step"] == 1
    (message,) = caplog.messages
    assert message.startswith(f"{path} is damaged")
    assert message.endswith("; passing it over")


class Malicious:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path(tempfile.gettempdir()) / "must-not-exist",)


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    # With a right checksum: whoever writes files can compute one.
    payload = io.BytesIO()
    torch.save({"config_hash": "mine", "bad": Malicious()}, payload, pickle_module=pickle)
    data = payload.getvalue()
    content = MAGIC + hashlib.sha256(data).digest() + data
    (tmp_path / "checkpoint-00000001.pt").write_bytes(content)
    assert load_latest(tmp_path, "mine") is None
    assert not (Path(tempfile.gettempdir()) / "must-not-exist").exists()


@pytest.mark.parametrize("room", [10, 100, 1000, 4000])
def test_a_full_disk_leaves_the_earlier_one(tmp_path: Path, room: int) -> None:
    save(tmp_path, state(1), 1)
    with file_size_limit(room), pytest.raises(CheckpointError) as caught:
        save(tmp_path, state(2), 2)
    assert "checkpoint-00000002.pt: cannot be written (File too large)" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-00000001.pt"]


def test_the_hash_is_of_what_decides_the_training() -> None:
    reference = run_hash(tiny_config())
    assert run_hash(tiny_config(output_dir="elsewhere", checkpoint_seconds=1.0)) == reference
    assert run_hash(tiny_config(device="auto")) == reference
    for change in (
        {"seed": 1},
        {"max_lr": 0.02},
        {"shape": {"p_dropout": 0.0}},
        {"grad_clip": None},
    ):
        assert run_hash(tiny_config(**change)) != reference
