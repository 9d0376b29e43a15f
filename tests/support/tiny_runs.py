"""Small runs for the tests of training, one thread each."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import torch

from budgetsweep.config import dump_yaml
from model.decoder import DecoderLM
from trainer.checkpoints import checkpoint
from trainer.config import RunConfig
from trainer.data.shards.tokens import TokenArray, TokenData
from trainer.events import Checkpointed, Command, Point, Progress, RunResult
from trainer.loop import train_run

N_VOCAB = 257
ROOT = Path(__file__).parents[2]


torch.set_num_threads(1)


def tiny_config(**changes: Any) -> RunConfig:
    """A run of a few milliseconds per step; `shape` updates its model."""
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


def write_run(folder: Path, std: float, seed: int = 0, **changes: Any) -> DecoderLM:
    """A run's folder with a model whose weights are drawn, so that it says more than one thing."""
    config = tiny_config(**changes)
    torch.manual_seed(seed)
    model = DecoderLM.from_config(config.model)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=std)
    torch.nn.init.zeros_(model.ln.bias)  # or one token would be likely everywhere
    folder.mkdir()
    torch.save(model.state_dict(), folder / "model.pt")
    (folder / "config.yaml").write_text(dump_yaml(config.to_dict()), encoding="utf-8")
    return model


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
) -> tuple[RunResult, list[Progress | Point | Checkpointed]]:
    """Run to the end; `command` answers the first event at `at_step` or later."""
    run = train_run(config, data, run_dir)
    events: list[Progress | Point | Checkpointed] = []
    answer: Command | None = None
    while True:
        try:
            event = run.send(answer)
        except StopIteration as stop:
            return stop.value, events
        events.append(event)
        answer = command if event.step >= at_step else None


def put_nan_into_checkpoint(run_dir: Path, config: RunConfig) -> int:
    """Spoil a weight of the newest checkpoint; its step."""
    saved = checkpoint.load_latest(run_dir, checkpoint.run_hash(config))
    assert saved is not None
    saved["model"]["ln.bias"][0] = float("nan")
    checkpoint.save(run_dir, saved, saved["step"])
    step: int = saved["step"]
    return step


def child(script: str, *arguments: str) -> subprocess.Popen[str]:
    """A Python process that has the tests' helpers."""
    setup = """
        import resource, sys, time
        from pathlib import Path
        from tests.support.tiny_runs import drive, tiny_config, tiny_data
        from trainer.loop import train_run
        run_dir = Path(sys.argv[1])
    """
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(setup) + textwrap.dedent(script), *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


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
