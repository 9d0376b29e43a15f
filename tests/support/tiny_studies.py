"""A study and its runs for tests that need any."""

from __future__ import annotations

from typing import Any

from studies.database.store import Store
from studies.database.study_settings import StudySettings
from studies.database.tables import Study
from trainer.config import RunConfig


def study_settings(**changes: Any) -> StudySettings:
    """A study of 1e15 FLOPs; keywords replace fields."""
    values: dict[str, Any] = {
        "budget_flops": 10**15, "convention": "nanogpt", "sampler": "tpe", "seed": 0,
        "space": {"parameters": {"n_embd": {"value": 16}}}, "base": {},
    }  # fmt: skip
    return StudySettings(**{**values, **changes})


def new_study(store: Store, name: str = "s", **changes: Any) -> Study:
    """Enter a study; keywords replace the defaults of `study_settings`."""
    return store.create_study(name, study_settings(**changes))


def run_config(**changes: Any) -> RunConfig:
    """A small run configuration of 12 steps; keywords replace top-level keys."""
    data: dict[str, Any] = {
        "tokenizer_encoding": "bytes",
        "model_config": {"n_embd": 16, "n_head": 2, "n_positions": 8, "n_layer": 1},
        "batch_size": 2,
        "seq_len": 8,
        "num_training_steps": 12,
        "max_lr": 1e-3,
    }
    return RunConfig.model_validate({**data, **changes})


def add_run(store: Store, study_id: int, number: int = 0, **changes: Any) -> int:
    """Queue a run; keywords replace the arguments of `Store.add_run`."""
    values: dict[str, Any] = {
        "kind": "trial",
        "params": {"n_embd": 16},
        "config": run_config(),
        "budget_flops": 10**15,
        "data_checksum": "d" * 64,
        "val_checksum": "v" * 64,
        "epochs": 0.5,
        "estimated_memory_bytes": 3 * 10**8,
        "output_dir": "outputs/0",
    }
    return store.add_run(study_id=study_id, number=number, **{**values, **changes})
