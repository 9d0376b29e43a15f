"""Studies whose losses follow a known law, entered as if they had been trained."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np

from budgetsweep.constraint import Admitted, Limits, admit
from studies.database.store import Store
from studies.database.tables import Run, Study
from studies.scaling.law import PUBLISHED, ScalingLaw, steplaw_batch_tokens, steplaw_lr
from studies.space.rungs import Rungs, rung_budget
from tests.support.tiny_studies import add_run
from trainer.config import RunConfig
from trainer.events import RunResult, RunStatus

BUDGET = 10**15
LAW = PUBLISHED["porian2024-refinedweb"]
WIDTHS = (64, 128, 192, 256, 384, 512)


def lawful_loss(
    config: RunConfig, law: ScalingLaw = LAW, counts: Literal["all", "blocks"] = "all"
) -> float:
    """Loss by the law, with what a learning rate and batch off StepLaw's cost."""
    n = float(config.n_params if counts == "all" else config.n_block_params)
    tokens = float(config.total_tokens)
    off_lr = math.log(config.max_lr / steplaw_lr(n, tokens))
    off_batch = math.log(config.tokens_per_step / steplaw_batch_tokens(tokens))
    return float(law.loss(n, tokens) + 0.04 * off_lr**2 + 0.02 * off_batch**2)


def trial_config(width: int, budget: int, n_layer: int | None = None, **changes: Any) -> RunConfig:
    """A filled configuration of that width near StepLaw's learning rate."""
    answer = admit(
        {
            "recipe": "gpt2",
            "model_config": {
                "n_embd": width, "n_head": width // 32, "n_positions": 128,
                "n_layer": n_layer or max(1, width // 32), "p_dropout": 0.0,
            },
            "seq_len": 128, "batch_size": 64, "max_lr": 4e-3, "min_lr_ratio": 0.1,
            "num_training_steps": "fill", **changes,
        },
        Limits(budget),
    )  # fmt: skip
    assert isinstance(answer, Admitted), answer
    return answer.config


def enter(store: Store, study: Study, number: int, config: RunConfig, **changes: Any) -> Run:
    """A complete run with the loss that the law gives it."""
    loss = changes.pop("loss_nats", None)
    values = {"config": config, "budget_flops": config.budget_flops, **changes}
    run_id = add_run(store, study.id, number, **values)
    store.start_attempt(run_id)
    loss = lawful_loss(config) if loss is None else loss
    store.finish_run(
        run_id,
        RunResult(
            status=RunStatus.COMPLETE, step=config.steps, steps_executed=config.steps,
            tokens=config.total_tokens, val_loss_nats=loss, val_ppl=math.exp(loss),
            val_loss_stderr_nats=0.005,
        ),
    )  # fmt: skip
    return store.run(run_id)


def fill_study(
    store: Store,
    study: Study,
    n_trials: int = 18,
    rungs: str = "0.1,0.3,1",
    seed: int = 0,
    counts: Literal["all", "blocks"] = "all",
) -> list[Run]:
    """Trials of several widths, learning rates and rungs, a little noise on their losses."""
    rng = np.random.default_rng(seed)
    plan = Rungs.parse(rungs)
    runs = []
    for number in range(n_trials):
        rung = plan.of_trial(number)
        config = trial_config(
            WIDTHS[(number // len(plan.of_trials)) % len(WIDTHS)],
            rung_budget(rung, study.budget_flops),
            max_lr=float(np.exp(rng.uniform(np.log(1e-3), np.log(1e-2)))),
        )
        loss = lawful_loss(config, counts=counts) + float(rng.normal(0, 0.01))
        runs.append(enter(store, study, number, config, scale=float(rung), loss_nats=loss))
    return runs
