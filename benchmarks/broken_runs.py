"""Small training runs that are broken on purpose, each in one way, through the project's trainer.

What is broken is replaced from outside (the sampler, `zero_grad`, the mask) or set (learning
rates, warm-up, batch, text): the trainer itself has no switch for it. Shape, text, learning rate
and lengths are drawn from the seed, so that no figure rests on one configuration.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from numpy.typing import NDArray

import trainer.objectives
import trainer.run_state
from model.decoder import DecoderLM
from trainer.config import RunConfig
from trainer.data.config import DataConfig
from trainer.data.prepare import open_prepared, prepare
from trainer.data.shards.tokens import TokenArray, TokenData
from trainer.events import Point
from trainer.loop import train_run

VAL_TOKENS = 6144
KINDS = (
    "healthy", "lr_too_high", "lr_too_low", "warmup_too_long", "batch_too_small", "data_in_order",
    "lr_constant", "grad_not_cleared", "overfitting", "leak",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class RecordedRun:
    """A run, how it was made, and what it told."""

    kind: str
    """One of `KINDS`: how it was broken."""
    seed: int
    config: dict[str, Any]
    status: str
    val_loss_nats: float | None
    points: list[dict[str, float | None]]
    """The fields of `trainer.events.Point`."""


def demo_tokens() -> TokenData:
    """Python's own standard library as bytes; nothing is downloaded."""
    data = DataConfig(source="demo")
    prepare(data, "bytes", train_tokens=None, val_tokens=None)
    return open_prepared(data, "bytes")


def draw(kind: str, seed: int, n_train: int) -> tuple[dict[str, Any], tuple[int, int], int]:
    """Settings, slice of the training text and start of the validation text of one run.

    The draws of a seed are the same for every kind, so that a broken run and the healthy one of
    its seed differ in what is broken only.
    """
    rng = np.random.default_rng(seed)
    width = int(rng.choice([24, 32, 48]))
    seq_len = int(rng.choice([24, 32, 48]))
    steps = int(rng.integers(160, 320))
    peak = float(10 ** rng.uniform(-2.6, -2.0))
    settings: dict[str, Any] = {
        "tokenizer_encoding": "bytes",
        "model_config": {
            "n_embd": width, "n_head": width // 8, "n_layer": int(rng.choice([1, 2])),
            "n_positions": seq_len, "p_dropout": float(rng.choice([0.0, 0.1])),
        },
        "device": "cpu",
        "batch_size": int(rng.choice([16, 20, 24])),
        "seq_len": seq_len,
        "num_training_steps": steps,
        "warmup_fraction": float(rng.uniform(0.0, 0.1)),
        "max_lr": peak,
        "min_lr_ratio": float(rng.choice([0.0, 0.05, 0.1])),
        "num_evals": int(rng.choice([5, 8, 10])),
        "num_reports": int(rng.choice([40, 60, 100])),
        "autocast": "off",
        "compile": "off",
        "checkpoint_seconds": 1e9,
        "seed": seed,
    }  # fmt: skip
    start = int(rng.integers(0, n_train - 2_000_000))
    length = int(rng.integers(100_000, 2_000_000))
    val_start = int(rng.integers(0, 400_000))
    factor = float(rng.uniform())
    match kind:
        case "lr_too_high":
            settings["max_lr"] = peak * 15 * 10**factor
        case "lr_too_low":
            settings["max_lr"] = peak / (30 * 10**factor)
        case "warmup_too_long":
            settings["warmup_fraction"] = 0.8 + 0.2 * factor
        case "batch_too_small":
            settings["batch_size"] = 1
        case "data_in_order" if factor < 0.5:  # several passes over less text
            length = int(settings["batch_size"] * seq_len * steps / rng.uniform(2, 5))
        case "lr_constant":
            settings["min_lr_ratio"] = 1.0
        case "grad_not_cleared" if factor < 0.5:  # clipping bounds what has piled up
            settings["grad_clip"] = None
        case "overfitting":
            length = int(rng.integers(1_500, 5_000))
            settings["num_training_steps"] = steps + 150
        case "leak":  # a short context and time enough to find the way to the next token
            settings["seq_len"] = settings["model_config"]["n_positions"] = int(seq_len / 2 + 4)
            settings["model_config"]["n_embd"] = max(32, width)
            settings["model_config"]["n_head"] = max(32, width) // 8
            settings["num_training_steps"] = steps + 300
            settings["max_lr"] = 2 * peak
    return settings, (start, start + length), val_start


class InOrder:
    """The windows of a text one after the other, from its beginning, and again."""

    def __init__(
        self, tokens: TokenArray, batch_size: int, seq_len: int, seed: int, micro_batches: int = 1
    ) -> None:
        del seed
        self._tokens, self._batch_size, self._seq_len = tokens, batch_size, seq_len
        self._micro_batches = micro_batches

    def batch(self, step: int, micro: int = 0) -> NDArray[np.int64]:
        """(B, S + 1) consecutive windows."""
        first = (step * self._micro_batches + micro) * self._batch_size
        windows = (first + np.arange(self._batch_size)) % ((len(self._tokens) - 1) // self._seq_len)
        return self._tokens.gather(windows * self._seq_len, self._seq_len + 1)


def _leave_alone(*, set_to_none: bool = True) -> None:
    """In place of `zero_grad`: the next gradient is added to this one."""
    del set_to_none


def _never_cleared(*arguments: Any) -> Any:
    optimizer = _build_optimizer(*arguments)
    optimizer.zero_grad = _leave_alone
    return optimizer


_build_optimizer = trainer.run_state.build_optimizer


@contextmanager
def breaking(kind: str) -> Iterator[None]:
    """Break the trainer in the way of `kind`, where settings alone do not."""
    patches: dict[str, Callable[[], Any]] = {
        "data_in_order": lambda: mock.patch.object(trainer.objectives, "WindowSampler", InOrder),
        "grad_not_cleared": lambda: mock.patch.object(
            trainer.run_state, "build_optimizer", _never_cleared
        ),
        "leak": lambda: mock.patch.object(DecoderLM, "causal", False),
    }
    if kind not in patches:
        yield
        return
    with patches[kind]():
        yield


def record(kind: str, seed: int, tokens: TokenData, **changes: Any) -> RecordedRun:
    """Train one run and return its curve; keywords replace drawn settings."""
    settings, (start, stop), val_start = draw(kind, seed, len(tokens.train))
    config = RunConfig.model_validate({**settings, **changes})
    data = dataclasses.replace(
        tokens,
        train=TokenArray.from_arrays([tokens.train[start:stop]]),
        val=TokenArray.from_arrays([tokens.val[val_start : val_start + VAL_TOKENS]]),
    )
    points: list[Point] = []
    with breaking(kind), tempfile.TemporaryDirectory() as folder:
        run = train_run(config, data, Path(folder))
        while True:
            try:
                event = next(run)
            except StopIteration as stop_:
                result = stop_.value
                break
            if isinstance(event, Point):
                points.append(event)
    return RecordedRun(
        kind, seed, config.to_dict(), result.status, result.val_loss_nats,
        [dataclasses.asdict(point) for point in points],
    )  # fmt: skip
