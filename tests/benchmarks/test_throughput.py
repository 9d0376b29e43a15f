"""The speed benchmark's own arithmetic and bad input; no speed is measured here."""

import argparse
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from benchmarks import throughput
from benchmarks.contenders import CONTENDERS


def test_a_row_has_the_median_the_ratios_of_its_rounds_and_the_exact_flops() -> None:
    speeds = {name: [100.0, 100.0, 100.0] for name in CONTENDERS}
    speeds[throughput.OURS] = [200.0, 400.0, 300.0]
    row = throughput.row("D128L4", 128, 4, "HF Trainer, defaults", speeds)
    assert row["ours_over_it"] == [2.0, 4.0, 3.0]
    assert row["median"] == 100.0
    # 6 x (V D + 12 L D²) + 12 L D T
    per_token = 6 * (50257 * 128 + 12 * 4 * 128**2) + 12 * 4 * 128 * 256
    assert row["tflops"] == pytest.approx(100.0 * per_token / 1e12, rel=1e-12)
    other = throughput.row("D128L4", 128, 4, "ours, modern recipe, batch 32", speeds)
    assert (other["ours_over_it"], other["tflops"]) == (None, None)


def test_the_table_says_which_bars_are_reached() -> None:
    speeds = {name: [100.0] for name in CONTENDERS}
    speeds[throughput.OURS] = [300.0]
    rows = [throughput.row("D64L2", 64, 2, name, speeds) for name in CONTENDERS]
    facts: dict[str, Any] = {
        "machine": "m", "commit": "c", "command": "x", "n": 1, "seconds": 1.0,
        "bf16_product_tflops": 0.5, "versions": {"torch": "t", "transformers": "h"},
    }  # fmt: skip
    text = throughput.markdown(rows, facts)
    assert "Against HF Trainer, defaults: 3.00 times, the bar is 4: not reached." in text
    assert "Against HF Trainer, bf16 + compile: 3.00 times, the bar is 2: reached." in text


@pytest.mark.parametrize("name", ["D100L4", "128L4", "D128", "D0L4", "D128L0", ""])
def test_a_shape_that_is_none(name: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="expected like D128L4"):
        throughput.shape_of(name)


def test_a_missing_library_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def version(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setattr(sys, "argv", ["throughput", "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as stop:
        throughput.main()
    assert stop.value.code == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.endswith("transformers is not installed: pip install -e '.[dev]'")
    assert not list(tmp_path.iterdir())
