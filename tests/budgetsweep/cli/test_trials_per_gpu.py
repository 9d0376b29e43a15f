"""`search --trials-per-gpu` as a user types it: what is refused."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.commands import usage_error


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("4", "--workers", "1"), "--trials-per-gpu and --workers both say"),
        (("4", "--device", "cpu"), "no GPU with device cpu: use --workers 4"),
        (("4", "--device", "mps"), "no GPU with device mps: use --workers 4"),
        (("4", "--simulate"), "--simulate: leave out --trials-per-gpu"),
    ],
)
def test_what_cannot_be_had_is_one_line_and_nothing_is_written(
    words: tuple[str, ...],
    message: str,
    refused: Callable[..., str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in refused("search", "--budget", "1e12", "--trials-per-gpu", *words)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("wrong", ["0", "65", "1.5", "auto"])
def test_only_a_number_is_a_number_of_trials(wrong: str) -> None:
    assert "Invalid value for '--trials-per-gpu'" in usage_error(
        "search", "--trials-per-gpu", wrong
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--device", "cuda:99"), "device = cuda:99: PyTorch"),
        (("--trials-per-gpu", "4"), "--trials-per-gpu 4: no GPU with device auto"),
    ],
)
def test_a_device_that_is_not_there_is_one_line_and_leaves_no_database(
    words: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    """All of what a user sees: the worker that looks for the device is a process of its own."""
    command = ["search", "--budget", "1e10", "--data", "demo", "--trials", "1", *words]
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-m", "budgetsweep", *command], cwd=tmp_path, capture_output=True,
        text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(root), "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith(f"Error: {message}")
    assert len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
