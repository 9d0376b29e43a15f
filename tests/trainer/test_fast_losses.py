"""The fast path (bf16, threads) against the plain one (float32, one thread): the same run."""

from pathlib import Path
from typing import Any

import pytest

from model import attention
from model import loss as loss_module
from tests.support.tiny_runs import assert_same_run, curve, drive, tiny_config, tiny_data
from trainer.config import RunConfig
from trainer.hardware import sequence_threads

TOLERANCE_NATS = 0.02
"""bf16 keeps 8 bits: a loss of 5.5 nats moves by less than this in 24 steps."""


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two threads and attention in blocks, however little there is to do."""
    for module in (loss_module, sequence_threads):
        monkeypatch.setattr(module, "team_size", lambda _: 2)
    monkeypatch.setattr(loss_module, "LEAST_SHARED_LOGITS", 0)
    monkeypatch.setattr(sequence_threads, "LEAST_ELEMENTS", 0)
    monkeypatch.setattr(attention, "attends_in_blocks", lambda *_: True)


def config(recipe: str, **changes: Any) -> RunConfig:
    settings = {
        "shape": {"p_dropout": 0.0, "n_embd": 32},
        "recipe": recipe,
        "num_training_steps": 24,
        "num_reports": 12,
        **changes,
    }
    if recipe == "modern":
        settings["head_samples"] = 64
    return tiny_config(**settings)


def losses(run_dir: Path) -> list[float]:
    return [float(row["train_loss_nats"]) for row in curve(run_dir)]


@pytest.mark.parametrize("recipe", ["gpt2", "modern"])
def test_fast_and_plain_have_the_same_losses(
    recipe: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    drive(config(recipe, autocast="off"), tiny_data(), tmp_path / "plain")
    request.getfixturevalue("fast")
    drive(config(recipe, autocast="bf16"), tiny_data(), tmp_path / "fast")
    ours, plain = losses(tmp_path / "fast"), losses(tmp_path / "plain")
    assert len(ours) == len(plain) >= 12
    assert ours != plain
    assert ours == pytest.approx(plain, abs=TOLERANCE_NATS)
    assert plain[-1] < plain[0] - 0.3  # it has learnt, so that a wrong gradient would show


@pytest.mark.slow
@pytest.mark.parametrize("autocast", ["off", "bf16"])
def test_with_threads_a_run_repeats_and_resumes_bit_for_bit(
    autocast: str, tmp_path: Path, fast: None
) -> None:
    settings = config("gpt2", autocast=autocast)
    for name in ("whole", "again"):
        result, _ = drive(settings, tiny_data(), tmp_path / name)
        assert result.status == "complete"
    assert_same_run(tmp_path / "whole", tmp_path / "again")
    result, _ = drive(settings, tiny_data(), tmp_path / "broken", "interrupt", at_step=17)
    assert result.status == "interrupted"
    drive(settings, tiny_data(), tmp_path / "broken")
    assert_same_run(tmp_path / "whole", tmp_path / "broken")
