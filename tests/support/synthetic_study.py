"""Fills a database with plausible runs, for the report's tests and its benchmark.

The loss is a scaling law (the form of Hoffmann et al. 2022, constants chosen so that 1e15 FLOPs
suit about 3.5 M parameters), with penalties for a learning rate and batch that do not fit, and
noise. No run was trained.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from model.config import ModelConfig
from model.flops import Convention, count_params, flops_per_token
from studies.database.ledger import of_steps
from studies.database.tables import (
    Base,
    LedgerEntry,
    PointRow,
    Rejection,
    Run,
    Study,
    settings_columns,
)
from studies.space.search_space import SearchSpace
from tests.support.tiny_studies import study_settings
from trainer.config import RunConfig

BEGIN = dt.datetime(2026, 3, 1, 9, 0, tzinfo=dt.UTC)
SPACE: dict[str, Any] = {
    "parameters": {
        "n_embd": {"min": 32, "max": 192, "step": 32},
        "n_layer": {"min": 1, "max": 8},
        "head_dim": {"values": [16, 32]},
        "seq_len": {"values": [32, 64, 128, 256]},
        "batch_size": {"values": [16, 32, 64, 128]},
        "max_lr": {"min": 1e-3, "max": 3e-2, "distribution": "log_uniform_values"},
        "min_lr_ratio": {"values": [0.0, 0.1]},
        "warmup_fraction": {"min": 0.01, "max": 0.1, "distribution": "log_uniform_values"},
        "weight_decay": {"values": [0.0, 0.01, 0.1]},
        "num_training_steps": {"value": "fill"},
        "p_dropout": {"value": 0.0},
    }
}
FIRST = {
    "n_embd": 64, "n_layer": 2, "head_dim": 32, "seq_len": 128, "batch_size": 64, "max_lr": 3e-3,
    "min_lr_ratio": 0.1, "warmup_fraction": 0.05, "weight_decay": 0.1,
}  # fmt: skip
REJECTIONS = ("over_budget", "invalid_shape", "out_of_memory", "too_many_epochs", "duplicate")
RESCALED = ("batch_size", "num_training_steps", "num_warmup_steps", "max_lr", "min_lr", "beta2")
BYTES_PER_TOKEN = 4.4


@dataclass(frozen=True)
class Plan:
    """What kind of study to write."""

    name: str = "c4-1e15"
    trials: int = 24
    points: int = 20
    evals: int = 5
    rejections: int = 9
    failed: int = 1
    pruned: int = 0
    unfinished: int = 0
    promotion: str | None = "complete"
    budget: int = 10**15
    convention: str = "nanogpt"
    recomputed_steps: int = 0
    bits: bool = True
    text: str = ""
    """Goes into every text of the study: for hostile strings."""


def fill_database(url: str, plan: Plan | None = None, **changes: Any) -> None:
    """Create the tables and write one study into them."""
    plan = Plan(**changes) if plan is None else plan
    engine = create_engine(url)
    Base.metadata.create_all(engine)
    with Session(engine) as session, session.begin():
        _Writer(session, plan).write()
    engine.dispose()


class _Writer:
    def __init__(self, session: Session, plan: Plan) -> None:
        self.session, self.plan = session, plan
        self.rng = np.random.default_rng(0)
        self.space = SearchSpace.model_validate(SPACE)
        self.clock = BEGIN
        self.proposed: dict[int, dict[str, Any]] = {}
        self.study = Study(
            name=plan.name + plan.text, created_utc=BEGIN,
            **settings_columns(study_settings(
                budget_flops=plan.budget, convention=plan.convention, space=self.space.to_dict(),
                base={"data": {"source": "c4"}, "output_dir": plan.text},
            )),
            data_description="C4, en, streamed" + plan.text, data_checksum="d" * 64,
            val_checksum="v" * 64, val_tokens=2_000_000,
            bytes_per_token=BYTES_PER_TOKEN if plan.bits else None,
        )  # fmt: skip
        session.add(self.study)
        session.flush()

    def write(self) -> None:
        plan, runs = self.plan, []
        kinds = ["complete"] * (plan.trials - plan.failed - plan.pruned - plan.unfinished)
        kinds += ["failed"] * plan.failed + ["pruned"] * plan.pruned
        kinds += ["running"] * plan.unfinished + ["rejected"] * plan.rejections
        if len(kinds) > 1 and kinds[0] == "complete":
            kinds[1:] = [str(kind) for kind in self.rng.permutation(kinds[1:])]
        for number, kind in enumerate(kinds):
            if kind == "rejected":
                self._reject(number)
            else:
                runs.append(self._run("trial", number, kind, self._params(number)))
        complete = [run for run in runs if run.status == "complete"]
        if plan.promotion and complete:
            best = min(complete, key=lambda run: run.val_loss_nats or math.inf)
            self._run("promotion", 0, plan.promotion, self.proposed[best.number], parent=best)

    def _params(self, number: int) -> dict[str, Any]:
        if number == 0:
            return dict(FIRST)
        params = self.space.random_settings(self.rng)
        near = {"n_embd": (64, 96), "n_layer": (2, 3, 4)} if number % 3 else {}
        return params | {name: int(self.rng.choice(values)) for name, values in near.items()}

    def _config(self, params: dict[str, Any], budget: int, **extra: Any) -> RunConfig:
        data = self.space.run_data(params, {"output_dir": "runs/" + self.plan.name, **extra})
        config = RunConfig.model_validate(
            {**data, "budget_flops": budget, "convention": self.plan.convention}
        )
        charge = flops_per_token(config.model, config.seq_len, config.convention)
        steps = max(1, budget // (charge * config.tokens_per_step))
        filled = config.with_changes(num_training_steps=steps)
        return filled.with_changes(
            num_warmup_steps=filled.warmup_steps, warmup_fraction=None,
            min_lr=filled.final_lr, min_lr_ratio=None,
        )  # fmt: skip

    def _run(
        self, kind: str, number: int, status: str, params: dict[str, Any], *,
        parent: Run | None = None,
    ) -> Run:  # fmt: skip
        scale = 1 if parent is None else 100
        self.proposed.setdefault(number, params)
        if parent is not None:
            params = params | {"max_lr": params["max_lr"] * 0.5, "batch_size": 256}
        config = self._config(params, self.plan.budget * scale)
        if parent is not None:
            params = {
                name: value for name, value in config.to_dict().items()
                if name in RESCALED and parent.config.get(name) != value
            }  # fmt: skip
        shape, steps = config.model, config.steps
        planned = {
            c: steps * config.tokens_per_step * flops_per_token(shape, config.seq_len, c)
            for c in Convention
        }
        done = {"complete": 1.0, "failed": 0.3, "pruned": 0.4, "running": 0.6}[status]
        final = self._loss(shape, config)
        stored = config.to_dict()
        hashed = {k: v for k, v in stored.items() if k not in ("seed", "output_dir")}
        reasons = {
            "failed": f"training loss became nan at step {int(steps * done)}" + self.plan.text,
            "pruned": "median of the other trials was lower",
        }
        seconds = 25.0 * scale
        start = self.clock
        self.clock += dt.timedelta(seconds=seconds * done + 3)
        run = Run(
            study_id=self.study.id, kind=kind, number=number, status=status,
            parent_run_id=parent.id if parent else None, scale=float(scale) if parent else None,
            reason=reasons.get(status), config=stored, seed=0,
            params={name + self.plan.text: value for name, value in params.items()},
            config_hash=hashlib.sha256(json.dumps(hashed, sort_keys=True).encode()).hexdigest(),
            git_commit="0123abc", versions={"python": "3.11.2", "torch": "2.13.0"},
            device_name="NVIDIA H200" + self.plan.text, precision="bf16", compiled=True,
            data_checksum="d" * 64, val_checksum="v" * 64,
            budget_flops=self.plan.budget * scale, n_params=count_params(shape), num_steps=steps,
            tokens_per_step=config.tokens_per_step,
            planned_tokens=steps * config.tokens_per_step,
            **{f"planned_flops_{c}": value for c, value in planned.items()},
            epochs=steps * config.tokens_per_step / 4e8, estimated_memory_bytes=3 << 30,
            attempts=1, step=int(steps * done),
            steps_executed=int(steps * done) + self.plan.recomputed_steps,
            steps_recomputed=self.plan.recomputed_steps,
            created_utc=start, started_utc=start,
        )  # fmt: skip
        if status != "running":
            run.finished_utc = self.clock
            run.train_seconds, run.eval_seconds = seconds * done * 0.93, seconds * done * 0.07
            run.peak_memory_bytes = int(2.8 * (1 << 30))
        if status == "complete":
            run.val_loss_nats, run.val_ppl = final, math.exp(final)
            run.val_loss_stderr_nats, run.val_tokens = 0.0061, 2_000_000
            run.train_loss_nats = final - 0.02
            if self.plan.bits:
                run.val_bits_per_byte = final / math.log(2) / BYTES_PER_TOKEN
        self.session.add(run)
        self.session.flush()
        self._curve(run, config, final, done)
        self._ledger(run)
        return run

    def _loss(self, shape: ModelConfig, config: RunConfig) -> float:
        n, d = count_params(shape), config.total_tokens
        law = 1.9 + 240.0 / n**0.32 + 470.0 / d**0.32
        rate = math.log10(config.max_lr / (1.1e-2 * (1e15 / (self.plan.budget)) ** 0.05))
        batch = math.log2(config.tokens_per_step / 8192)
        return float(
            law + 0.55 * rate**2 + 0.012 * batch**2 + 0.03 * abs(self.rng.normal())
            + 0.02 * abs(math.log2(config.seq_len / 128)) + 0.03 * max(0, shape.n_layer - 5)
        )  # fmt: skip

    def _curve(self, run: Run, config: RunConfig, final: float, done: float) -> None:
        plan, rows = self.plan, []
        charge = flops_per_token(config.model, config.seq_len, config.convention)
        points = sorted({max(1, round(k * run.num_steps / plan.points))
                         for k in range(1, plan.points + 1)})  # fmt: skip
        marks = {round(k * run.num_steps / plan.evals) for k in range(1, plan.evals + 1)}
        start = math.log(config.model.n_vocab)
        for step in sorted({*points, *(m for m in marks if m)}):
            share = step / run.num_steps
            if share > done:
                break
            loss = final + (start - final) * (0.12 * (1 - share) + 0.88 * math.exp(-14 * share))
            tokens = step * run.tokens_per_step
            rows.append(
                PointRow(
                    run_id=run.id, step=step, tokens=tokens, flops=tokens * charge,
                    seconds=25.0 * share, train_loss_nats=loss + 0.03 * self.rng.normal() - 0.02,
                    val_loss_nats=loss if step in marks else None,
                    lr=config.max_lr * (1 - share), grad_norm=0.8,
                )
            )  # fmt: skip
        self.session.add_all(rows)

    def _ledger(self, run: Run) -> None:
        per_run = [run.planned_flops_nanogpt, run.planned_flops_matmul, run.planned_flops_mac]
        for entry, steps in (("planned", run.num_steps), ("spent", run.steps_executed)):
            amount = of_steps(steps, run.num_steps, run.tokens_per_step, per_run)
            self.session.add(
                LedgerEntry(
                    study_id=self.study.id, run_id=run.id, created_utc=self.clock, entry=entry,
                    attempt=1, steps=steps, tokens=amount.tokens, flops_nanogpt=amount.nanogpt,
                    flops_matmul=amount.matmul, flops_mac=amount.mac,
                )
            )  # fmt: skip

    def _reject(self, number: int) -> None:
        reason = REJECTIONS[number % len(REJECTIONS)]
        params = self.space.random_settings(self.rng)
        shape = {
            "n_params": int(10 ** self.rng.uniform(6.3, 7.4)),
            "tokens": int(10 ** self.rng.uniform(7.6, 8.4)),
        }
        excess = float(self.rng.uniform(1.1, 6.0))
        limited = reason not in ("invalid_shape", "duplicate")
        self.session.add(
            Rejection(
                study_id=self.study.id, number=number, created_utc=self.clock, reason=reason,
                detail=f"{excess:.2f} times what is allowed" + self.plan.text,
                excess=excess if limited else None,
                params={name + self.plan.text: value for name, value in params.items()},
                charge_flops=int(self.plan.budget * excess) if limited else None,
                **(shape if reason != "invalid_shape" else {}),
            )
        )  # fmt: skip
