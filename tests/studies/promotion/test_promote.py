"""The promotion: same shape, never over budget, a documented rule, continued after anything."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from budgetsweep.constraint import Limits
from budgetsweep.errors import ConfigError, StudyError
from studies.database.store import Store
from studies.promotion.promote import PromoteHooks, PromoteSettings, PromotionPlan, promote
from studies.scaling.rescaling import promoted_config, rescale, rescaled_warmup
from tests.studies.test_search import StopAt
from tests.support.searches import BUDGET, Recorder, read, run_search, settings_for
from trainer.config import RunConfig
from trainer.events import DeviceInfo
from trainer.memory import estimate_memory_bytes

pytestmark = pytest.mark.slow


def trial_config(**changes: Any) -> RunConfig:
    return RunConfig.model_validate(
        {
            "tokenizer_encoding": "bytes",
            "model_config": {"n_embd": 64, "n_head": 4, "n_positions": 64, "n_layer": 2},
            "batch_size": 8, "seq_len": 64, "max_lr": 1e-2, "min_lr": 1e-3, "beta2": 0.99,
            "num_warmup_steps": 7, "num_training_steps": 100, **changes,
        }
    )  # fmt: skip


@pytest.mark.parametrize(
    ("ratio", "batch", "lr"),
    [(100.0, 8, 100**-0.32 * 8**0.5), (1.0, 1, 1.0), (0.5, 1, 1.0)],  # 100^0.45 = 7.94
)
def test_the_rule(ratio: float, batch: int, lr: float) -> None:
    rule = rescale(ratio)
    assert (rule.batch_factor, rule.lr_factor) == (batch, pytest.approx(lr))


@given(st.floats(1, 1e4))
def test_longer_runs_take_larger_batches(ratio: float) -> None:
    assert rescale(ratio).batch_factor >= rescale(max(1.0, ratio / 2)).batch_factor


def test_the_shape_stays_and_hands_may_set_the_rest() -> None:
    trial = trial_config()
    budget = 100 * trial.flops_per_step("nanogpt") * 100
    config, rule = promoted_config(
        trial, budget, ("max_lr=0.02", "min_lr_ratio=0.5"), Limits(budget)
    )
    assert config.model == trial.model
    assert config.max_lr == 0.02
    assert config.final_lr == pytest.approx(0.01)
    assert config.batch_size == 8 * rule.batch_factor
    assert (config.beta2, config.weight_decay) == (trial.beta2, trial.weight_decay)
    assert config.num_warmup_steps == round(trial.n_params / config.tokens_per_step)
    assert 7 < config.num_warmup_steps < 100
    with pytest.raises(ConfigError, match="keeps the model's shape"):
        promoted_config(trial, budget, ("model_config.n_layer=3",), Limits(budget))


@pytest.mark.parametrize(
    ("warmup", "expected"),
    [
        ({"num_warmup_steps": 0}, 0),
        ({"num_warmup_steps": None}, 0),
        ({"num_warmup_steps": None, "warmup_fraction": 0.001}, 29),  # none of 100 steps
        ({"num_warmup_steps": 60}, 60),
    ],
)
def test_a_warm_up_grows_to_a_token_a_parameter(warmup: dict[str, Any], expected: int) -> None:
    trial = trial_config(**warmup)
    budget = 100 * trial.flops_per_step("nanogpt") * 100
    config, _ = promoted_config(trial, budget, (), Limits(budget))
    assert config.num_warmup_steps == expected
    assert config.warmup_fraction is None
    by_hand, _ = promoted_config(trial, budget, ("warmup_fraction=0.5",), Limits(budget))
    assert (by_hand.num_warmup_steps, by_hand.warmup_fraction) == (None, 0.5)


@given(st.integers(1, 50), st.integers(1, 10**8), st.integers(1, 10**6), st.integers(1, 10**6))
def test_a_warm_up_is_at_most_a_tenth_unless_it_was_longer(
    kept: int, n_params: int, tokens_per_step: int, steps: int
) -> None:
    found = rescaled_warmup(kept, n_params, tokens_per_step, steps)
    assert found >= kept
    assert found == kept or found <= steps / 10


def test_a_batch_too_large_for_the_memory_is_accumulated() -> None:
    trial = trial_config()
    budget = 100 * trial.flops_per_step("nanogpt") * 100
    small = estimate_memory_bytes(trial.with_changes(batch_size=16), "cuda", bf16=False)
    device = DeviceInfo("cuda", "small GPU", small, bf16=False, n_threads=1)
    config, rule = promoted_config(trial, budget, (), Limits(budget, device=device))
    assert rule.batch_factor == 8
    assert config.batch_size == 16
    assert config.grad_accumulation_steps == 4
    assert config.tokens_per_step == 8 * trial.tokens_per_step


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("promote")
    run_search(settings_for(folder, trials=2))
    return folder


def settings(folder: Path, **changes: Any) -> PromoteSettings:
    values = {"storage": folder / "study.db", "scale": 4.0, "device": "cpu",
              "cache_dir": folder / "cache"}  # fmt: skip
    return PromoteSettings(**{**values, **changes})  # type: ignore[arg-type]


def test_interrupted_and_continued_stays_within_the_budget(searched: Path) -> None:
    plans: list[PromotionPlan] = []

    def on_plan(plan: PromotionPlan) -> bool:
        plans.append(plan)
        return True

    stop = StopAt(1, 1)
    first = promote(
        settings(searched),
        PromoteHooks(observer=stop, should_stop=stop.should_stop, on_plan=on_plan),
    )
    assert first.run.status == "interrupted"
    second = promote(settings(searched), PromoteHooks(on_plan=on_plan))
    assert (second.run.id, second.run.status) == (first.run.id, "complete")
    assert plans[1].resumed_at_step == first.run.step > 0
    assert second.run.planned_flops_nanogpt <= 4 * BUDGET
    assert second.run.parent_run_id == second.trial.id
    trial = RunConfig.model_validate(second.trial.config)
    promoted = RunConfig.model_validate(second.run.config)
    assert promoted.model == trial.model
    assert second.run.val_checksum == second.trial.val_checksum
    assert second.run.val_loss_nats is not None
    assert second.trial.val_loss_nats is not None
    assert second.run.val_loss_nats < second.trial.val_loss_nats
    folder = Path(second.run.output_dir or "")
    names = {path.name for path in folder.iterdir()}
    assert {"model.pt", "config.yaml", "eval.json", "curve.csv"} <= names
    evaluation = json.loads((folder / "eval.json").read_text())
    assert evaluation["val_loss_nats"] == second.run.val_loss_nats
    study, _ = read(settings_for(searched))
    with Store.open(searched / "study.db") as store:
        ledger = store.ledger(study.id)
        assert ledger.spent == ledger.planned
    recorder = Recorder()
    third = promote(settings(searched), PromoteHooks(observer=recorder))
    assert third.run.id == second.run.id
    assert recorder.started == []


def test_what_cannot_be_promoted_is_refused(searched: Path) -> None:
    with pytest.raises(StudyError, match="has no trial 99"):
        promote(settings(searched, trial=99), PromoteHooks())
    with pytest.raises(ConfigError, match="passes over the"):
        promote(settings(searched, scale=500.0), PromoteHooks())
    with pytest.raises(ConfigError, match="one optimiser step"):
        promote(settings(searched, scale=1e-5), PromoteHooks())
    with pytest.raises(ConfigError, match="--scale"):
        dataclasses.replace(settings(searched), scale=float("nan"))


def test_no_means_no(searched: Path) -> None:
    outcome = promote(settings(searched, scale=3.0), PromoteHooks(on_plan=lambda plan: False))
    assert outcome.run.status == "queued"
