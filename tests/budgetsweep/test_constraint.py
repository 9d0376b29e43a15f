"""The constraint: the budget is kept by construction, and each refusal says why and by how much."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from budgetsweep.constraint import (
    Admitted,
    Limits,
    Rejected,
    admit,
    affordable_steps,
    fill,
    planned_flops,
)
from budgetsweep.errors import ConfigError, Reason
from model.flops import Convention
from trainer.config import RunConfig
from trainer.data.facts import DataFacts
from trainer.events import DeviceInfo

GPU = DeviceInfo("cuda", "test GPU", 8 * 2**30, bf16=True, n_threads=1)
LITTLE_TRAINING = DataFacts("text", "", "", train_tokens=1000)
LITTLE_VALIDATION = DataFacts("text", "", "", val_tokens=511)


def run_data(**changes: Any) -> dict[str, Any]:
    data: dict[str, Any] = {
        "tokenizer_encoding": "bytes",
        "model_config": {"n_embd": 32, "n_head": 2, "n_positions": 64, "n_layer": 2},
        "batch_size": 4,
        "seq_len": 64,
        "max_lr": 1e-2,
    }
    shape = {k: changes.pop(k) for k in list(changes) if k in ("n_embd", "n_head", "n_layer")}
    data.update(changes)
    data["model_config"] = {**data["model_config"], **shape}
    return data


runs = st.builds(
    lambda heads, dim, layers, batch, seq, accumulate: run_data(
        n_embd=heads * dim, n_head=heads, n_layer=layers, batch_size=batch, seq_len=seq,
        grad_accumulation_steps=accumulate,
    ),
    st.integers(1, 8), st.integers(1, 32), st.integers(1, 6), st.integers(1, 64),
    st.integers(1, 64), st.integers(1, 4),
)  # fmt: skip


@given(runs, st.integers(10**6, 10**17), st.sampled_from(Convention))
def test_fill_takes_the_most_steps_that_the_budget_affords(
    data: dict[str, Any], budget: int, convention: Convention
) -> None:
    answer = admit(data, Limits(budget, convention))
    if isinstance(answer, Rejected):
        assert answer.reason is Reason.OVER_BUDGET
        assert answer.charge_flops is not None
        assert answer.charge_flops > budget  # not even one step fits
        return
    per_step = answer.config.flops_per_step(convention)
    assert answer.charge_flops == per_step * answer.config.steps
    assert answer.charge_flops <= budget < answer.charge_flops + per_step
    assert planned_flops(answer.config)[convention] == answer.charge_flops


@given(runs, st.integers(10**9, 10**15), st.integers(1, 10**6))
def test_free_steps_are_admitted_just_when_they_fit(
    data: dict[str, Any], budget: int, steps: int
) -> None:
    answer = admit({**data, "num_training_steps": steps}, Limits(budget))
    config = RunConfig.model_validate({**data, "num_training_steps": steps})
    cost = config.flops_per_step("nanogpt") * steps
    assert isinstance(answer, Admitted) == (cost <= budget)
    if isinstance(answer, Rejected):
        assume(answer.charge_flops == cost)  # else: not even one step fits, tested above
        assert answer.excess == pytest.approx(cost / budget)
        affordable = affordable_steps(config, budget, "nanogpt")
        said = f"affords {affordable:,} steps" if affordable else "times the whole budget"
        assert said in answer.detail


@pytest.mark.parametrize(
    ("changes", "limits", "reason", "words"),
    [
        ({"n_head": 3}, Limits(10**12), Reason.INVALID_SHAPE, "not a multiple"),
        ({"seq_len": 65}, Limits(10**12), Reason.INVALID_SHAPE, "longer than n_positions"),
        ({"max_lr": -1.0}, Limits(10**12), Reason.INVALID_VALUE, "max_lr"),
        ({"batch_size": 10**9}, Limits(10**12), Reason.OVER_BUDGET, "one optimiser step"),
        (
            {"batch_size": 10**5},
            Limits(10**18, device=GPU),
            Reason.OUT_OF_MEMORY,
            "test GPU has 8 GiB",
        ),
        (
            {},
            Limits(10**12, data=LITTLE_VALIDATION),
            Reason.TOO_LITTLE_VALIDATION_DATA,
            "there are 511",
        ),
        ({}, Limits(10**13, data=LITTLE_TRAINING), Reason.TOO_MANY_EPOCHS, "over the 1,000"),
    ],
)
def test_each_refusal_says_why_and_by_how_much(
    changes: dict[str, Any], limits: Limits, reason: Reason, words: str
) -> None:
    answer = admit(run_data(**changes), limits)
    assert isinstance(answer, Rejected)
    assert answer.reason is reason
    assert words in answer.detail
    if reason not in (Reason.INVALID_SHAPE, Reason.INVALID_VALUE):
        assert answer.excess is not None
        assert answer.excess > 1


def test_fill_writes_out_warm_up_and_final_learning_rate() -> None:
    config = RunConfig.model_validate(
        run_data(warmup_fraction=0.1, min_lr_ratio=0.25, budget_flops=10**11)
    )
    filled = fill(config)
    assert filled.num_warmup_steps == round(0.1 * filled.steps)
    assert filled.min_lr == pytest.approx(0.25e-2)
    assert fill(filled) == filled


def test_fill_without_a_budget_says_what_to_set() -> None:
    with pytest.raises(ConfigError, match="set budget_flops"):
        fill(RunConfig.model_validate(run_data()))
