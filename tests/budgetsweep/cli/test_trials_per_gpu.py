"""`search --trials-per-gpu` as a user types it: what is refused, and what is said without a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from budgetsweep.cli.main import cli
from tests.support.fake_gpus import use_fake_gpus
from tests.support.searches import PARAMETERS


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("4", "--workers", "1"), "--trials-per-gpu and --workers both say"),
        (("auto", "--workers", "2"), "give one"),
        (("4", "--device", "cpu"), "no GPU with device cpu: use --workers 4"),
        (("4", "--device", "mps"), "no GPU with device mps: use --workers 4"),
        (("auto", "--simulate"), "--simulate: leave out --trials-per-gpu"),
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


@pytest.mark.parametrize("wrong", ["0", "65", "-1", "1.5", "many", "²"])
def test_only_a_number_or_auto_is_a_number_of_trials(wrong: str) -> None:
    result = CliRunner().invoke(cli, ["search", "--trials-per-gpu", wrong])
    assert result.exit_code == 2
    assert "expected 1 to 64, or auto" in result.output


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("cpu", "trials per GPU: there is no GPU to share, 1 worker is used"),
        ("cuda", "trials per GPU: 1 → 1,000 tokens/s, 2 → 1,050: 1 is used"),
    ],
)
def test_auto_says_in_one_line_what_it_found(
    kind: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("budgetsweep.cli.search.DRY_RUN_PROPOSALS", 50)
    use_fake_gpus(monkeypatch, lambda count: {1: 1000.0, 2: 1050.0}[count], kind=kind)
    Path("space.yaml").write_text(yaml.safe_dump({"parameters": PARAMETERS}))
    result = CliRunner().invoke(
        cli,
        ["search", "--dry-run", "--space", "space.yaml", "--budget", "4e8", "--data", "demo",
         "--trials-per-gpu", "auto"],
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert told in result.output.splitlines()
    assert "measured here" in result.output


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
        [sys.executable, "-m", "budgetsweep.cli.main", *command], cwd=tmp_path, capture_output=True,
        text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(root), "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith(f"Error: {message}")
    assert len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
