"""Small runs for the tests of training, one thread each."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trainer.branches import WHOLE, Lineage
from trainer.config import RunConfig
from trainer.events import Checkpointed, Command, Point, Progress, RunResult
from trainer.loop import train_run
from trainer.tokens import TokenArray, TokenData

N_VOCAB = 257


torch.set_num_threads(1)


def tiny_config(**changes: Any) -> RunConfig:
    """A run of a few milliseconds a step; `shape` updates its model."""
    shape = {"n_embd": 16, "n_head": 2, "n_positions": 16, "n_layer": 2, "p_dropout": 0.1}
    shape.update(changes.pop("shape", {}))
    settings = {
        "tokenizer_encoding": "bytes",
        "model_config": shape,
        "device": "cpu",
        "batch_size": 4,
        "seq_len": 16,
        "grad_accumulation_steps": 2,
        "num_training_steps": 20,
        "num_warmup_steps": 3,
        "max_lr": 1e-2,
        "num_evals": 4,
        "num_reports": 7,
        "autocast": "off",
        **changes,
    }
    return RunConfig.model_validate(settings)


def tiny_data(n_train: int = 3000, n_val: int = 400, seed: int = 0) -> TokenData:
    """Tokens with something to learn: each is the one before plus 0 … 3."""
    rng = np.random.default_rng(seed)
    ids = np.cumsum(rng.integers(0, 4, n_train + n_val)) % N_VOCAB
    train, val = ids[:n_train], ids[n_train:]
    return TokenData(
        train=TokenArray.from_arrays([train[: n_train // 3], train[n_train // 3 :]]),
        val=TokenArray.from_arrays([val]),
        tokenizer_encoding="bytes",
        n_vocab=N_VOCAB,
        eot=256,
        bytes_per_token=1.0,
        data_checksum=f"train {seed}",
        val_checksum=f"val {seed}",
        description="a random walk",
        folder=Path(),
        exhausted=True,
    )


def drive(
    config: RunConfig,
    data: TokenData,
    run_dir: Path,
    command: Command | None = None,
    at_step: int = 0,
    lineage: Lineage = WHOLE,
) -> tuple[RunResult, list[Progress | Point | Checkpointed]]:
    """Run to the end; `command` answers the first event at `at_step` or later."""
    run = train_run(config, data, run_dir, lineage)
    events: list[Progress | Point | Checkpointed] = []
    answer: Command | None = None
    while True:
        try:
            event = run.send(answer)
        except StopIteration as stop:
            return stop.value, events
        events.append(event)
        answer = command if event.step >= at_step else None


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    """The weights that a complete run left."""
    return torch.load(run_dir / "model.pt", weights_only=True)


def curve(run_dir: Path) -> list[dict[str, str]]:
    """The rows of curve.csv without the seconds, which differ from run to run."""
    with (run_dir / "curve.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def assert_same_run(run_dir: Path, other: Path) -> None:
    """Weights and curves are equal bit for bit."""
    ours, theirs = weights(run_dir), weights(other)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name
    assert curve(run_dir) == curve(other)
