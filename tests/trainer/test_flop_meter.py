"""The FLOP meter: no step that the budget cannot pay, and no executed step forgotten."""

import logging
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from budgetsweep.errors import BudgetExceeded, CheckpointError
from trainer.flop_meter import METER_NAME, FlopMeter, read_executed_steps


@given(budget=st.integers(1, 10**30), per_step=st.integers(1, 10**29))
def test_the_budget_pays_exactly_its_whole_steps(budget: int, per_step: int) -> None:
    affordable = budget // per_step
    with (
        tempfile.TemporaryDirectory() as folder,
        FlopMeter(Path(folder), per_step, budget) as meter,
    ):
        if affordable:
            meter.charge(affordable - 1)
        with pytest.raises(BudgetExceeded, match="training FLOPs of"):
            meter.charge(affordable)
        assert meter.executed_steps == (1 if affordable else 0)  # the refused one not counted


def test_steps_of_all_attempts_are_counted(tmp_path: Path) -> None:
    assert read_executed_steps(tmp_path) == 0
    for attempt in range(1, 4):
        with FlopMeter(tmp_path, 10, 1000) as meter:
            for step in range(5):  # each attempt starts over: history is short, spending is not
                meter.charge(step)
        assert read_executed_steps(tmp_path) == 5 * attempt


def test_the_count_survives_sigkill(tmp_path: Path) -> None:
    script = """
import sys
from pathlib import Path
from trainer.flop_meter import FlopMeter
meter = FlopMeter(Path(sys.argv[1]), 1, 10**9)
for step in range(100_000):
    meter.charge(step)
print(meter.executed_steps, flush=True)
sys.stdin.read()
"""
    child = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    with child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"100000\n"
        with pytest.raises(CheckpointError, match="another process is training there"):
            FlopMeter(tmp_path, 1, 10)
        assert read_executed_steps(tmp_path) == 100_000  # readable from outside all the while
        child.send_signal(signal.SIGKILL)
    assert read_executed_steps(tmp_path) == 100_000
    with FlopMeter(tmp_path, 1, 10) as meter:  # and the folder is free again
        assert meter.executed_steps == 100_000


@pytest.mark.parametrize("damage", [b"\0" * 8, b"\x05", b"\xff" * 8, b"12345678", b"x" * 100])
def test_a_damaged_file_falls_back_on_the_checkpoints(
    tmp_path: Path, damage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    with FlopMeter(tmp_path, 1, 100) as meter:
        meter.charge(0)
    (tmp_path / METER_NAME).write_bytes(damage)
    (tmp_path / "checkpoint-00000017.pt").write_bytes(b"")
    (tmp_path / "checkpoint-00000012.pt").write_bytes(b"")
    with caplog.at_level(logging.WARNING, "budgetsweep"):
        assert read_executed_steps(tmp_path) == 17
    assert "meter.bin is damaged; counting the 17 executed steps" in caplog.text
    with FlopMeter(tmp_path, 1, 100) as meter:
        meter.charge(17)
    caplog.clear()
    assert read_executed_steps(tmp_path) == 18
    assert not caplog.records  # repaired


def test_a_folder_that_cannot_be_written_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"meter\.bin: cannot be written \(No such file"):
        FlopMeter(tmp_path / "missing", 1, 10)
