"""The trainers that `benchmarks.throughput` compares, each in a process of its own.

A contender trains a decoder of GPT-2's shape and vocabulary on random tokens, in sequences of 256.
Its process trains only while it is asked to: `serve` answers each number of seconds that comes
through the pipe with the tokens trained and the seconds that they took, whole steps, measured
inside the process, the loading of batches included.
"""

from __future__ import annotations

import os
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping
from itertools import count
from multiprocessing.connection import Connection
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

SEQ_LEN = 256
N_VOCAB = 50257
MANY_STEPS = 1_000_000
"""More than any contender trains."""


class Contender(NamedTuple):
    """One way to train."""

    kind: str
    """`ours`, `huggingface` or `plain`."""
    batch_size: int
    settings: Mapping[str, Any] = MappingProxyType({})
    """Of the run (ours) or of `TrainingArguments` (Hugging Face)."""


CONTENDERS: dict[str, Contender] = {
    "ours, batch 8": Contender("ours", 8),
    "ours, batch 32": Contender("ours", 32),
    "ours in fp32, batch 8": Contender("ours", 8, {"autocast": "off"}),
    "HF Trainer, defaults": Contender("huggingface", 8),
    "HF Trainer, bf16 + compile": Contender(
        "huggingface", 8, {"bf16": True, "torch_compile": True, "use_cpu": True}
    ),
    "plain PyTorch, bf16": Contender("plain", 8),
    "ours, modern recipe, batch 32": Contender("ours", 32, {"recipe": "modern"}),
}


def serve(pipe: Connection, name: str, width: int, layers: int) -> None:
    """Train contender `name` at a shape for as many seconds as the pipe says, again and again.

    Sends (tokens, seconds) for each number received, the line of an error if it cannot train.
    None ends it.
    """
    contender = CONTENDERS[name]
    start = {"ours": _ours, "huggingface": _hugging_face, "plain": _plain}[contender.kind]
    try:
        start(pipe, contender, width, layers)
    except ImportError as error:
        pipe.send(f"{error.name or error} is not installed: pip install -e '.[dev]'")


def _answer(pipe: Connection, steps: Iterator[int], tokens_per_step: int) -> None:
    """Let `steps` go on, a number of steps at a time, while the pipe asks for more."""
    while (seconds := pipe.recv()) is not None:
        done, started = 0, time.perf_counter()
        while (took := time.perf_counter() - started) < seconds or not done:
            done += next(steps)
        pipe.send((done * tokens_per_step, took))


def _ours(pipe: Connection, contender: Contender, width: int, layers: int) -> None:
    """The product's own loop, as `budgetsweep train` runs it."""
    from trainer.hardware.environment import prepare_environment

    prepare_environment()
    import numpy as np

    from trainer.config import RunConfig
    from trainer.data.shards.tokens import TokenArray, TokenData
    from trainer.hardware.device import configure_threads
    from trainer.loop import train_run

    configure_threads()
    config = RunConfig.model_validate({
        "recipe": "gpt2",
        "tokenizer_encoding": "gpt2",
        "model_config": {
            "n_embd": width, "n_head": width // 32, "n_layer": layers, "n_positions": SEQ_LEN,
            "p_dropout": 0.0,
        },
        "device": "cpu", "batch_size": contender.batch_size, "seq_len": SEQ_LEN, "max_lr": 1e-3,
        "num_training_steps": MANY_STEPS, "num_evals": 1, "num_reports": 1,
        "checkpoint_seconds": 1e9, **contender.settings,
    })  # fmt: skip
    ids = np.random.default_rng(0).integers(0, N_VOCAB, 1 << 20).astype(np.uint16)
    data = TokenData(
        train=TokenArray([ids]), val=TokenArray([ids[:4096]]), tokenizer_encoding="gpt2",
        n_vocab=N_VOCAB, eot=N_VOCAB - 1, bytes_per_token=None, data_checksum="", val_checksum="",
        description="noise", folder=Path(), exhausted=True,
    )  # fmt: skip

    def steps() -> Iterator[int]:
        before = 0
        for event in train_run(config, data, Path(folder)):
            yield event.step - before
            before = event.step

    with tempfile.TemporaryDirectory() as folder:
        _answer(pipe, steps(), config.tokens_per_step)


def _hugging_face(pipe: Connection, contender: Contender, width: int, layers: int) -> None:
    """`transformers.Trainer` with `GPT2LMHeadModel`; it stops between steps to answer."""
    warnings.filterwarnings("ignore")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    import accelerate  # noqa: F401 - the Trainer's own error names no package
    import torch
    from transformers import (
        GPT2Config,
        GPT2LMHeadModel,
        PrinterCallback,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )

    class Noise(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
        ids = torch.randint(N_VOCAB, (4096, SEQ_LEN))

        def __len__(self) -> int:
            return len(self.ids)

        def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
            return {"input_ids": self.ids[index], "labels": self.ids[index]}

    class Answers(TrainerCallback):
        seconds: float | None = None

        def on_train_begin(self, _args: Any, _state: Any, control: Any, **_: Any) -> None:
            self._next(control)

        def on_step_end(self, _args: Any, _state: Any, control: Any, **_: Any) -> None:
            self.done += 1
            took = time.perf_counter() - self.started
            if self.seconds is not None and took >= self.seconds:
                pipe.send((self.done * contender.batch_size * SEQ_LEN, took))
                self._next(control)

        def _next(self, control: Any) -> None:
            self.seconds = pipe.recv()
            control.should_training_stop = self.seconds is None
            self.done, self.started = 0, time.perf_counter()

    shape = GPT2Config(
        n_embd=width, n_head=width // 32, n_layer=layers, n_positions=SEQ_LEN, vocab_size=N_VOCAB
    )
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder, max_steps=MANY_STEPS, save_strategy="no", report_to="none",
            disable_tqdm=True, **contender.settings,
        )  # fmt: skip
        if arguments.per_device_train_batch_size != contender.batch_size:
            raise SystemExit(f"the Trainer's batch is {arguments.per_device_train_batch_size}")
        trainer = Trainer(
            model=GPT2LMHeadModel(shape), args=arguments, train_dataset=Noise(),
            callbacks=[Answers()],
        )  # fmt: skip
        trainer.remove_callback(PrinterCallback)  # it prints a summary at the end
        trainer.train()


def _plain(pipe: Connection, contender: Contender, width: int, layers: int) -> None:
    """A loop as people write it by hand (in the style of nanoGPT), bf16 autocast."""
    import torch
    import torch.nn.functional as F

    torch.manual_seed(0)
    model = _plain_model(width, layers)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1)

    def step() -> None:
        ids = torch.randint(N_VOCAB, (contender.batch_size, SEQ_LEN + 1))
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(ids[:, :-1])
            loss = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    _answer(pipe, (1 for _ in count() if step() is None), contender.batch_size * SEQ_LEN)


def _plain_model(width: int, layers: int) -> Any:
    """A GPT-2 from torch's own parts: one projection for q, k and v, fused attention, tied head."""
    import torch
    import torch.nn.functional as F
    from torch import Tensor, nn

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
            self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
            self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

        def forward(self, x: Tensor) -> Tensor:
            heads = self.qkv(self.ln_1(x)).unflatten(-1, (3, width // 32, 32))
            q, k, v = heads.permute(2, 0, 3, 1, 4)
            seen = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.proj(seen.transpose(1, 2).flatten(2))
            return x + self.down(F.gelu(self.up(self.ln_2(x))))

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens = nn.Embedding(N_VOCAB, width)
            self.positions = nn.Embedding(SEQ_LEN, width)
            self.blocks = nn.Sequential(*(Block() for _ in range(layers)))
            self.ln = nn.LayerNorm(width)
            self.head = nn.Linear(width, N_VOCAB, bias=False)
            self.head.weight = self.tokens.weight
            for parameter in self.parameters():
                if parameter.ndim == 2:
                    nn.init.normal_(parameter, std=0.02)

        def forward(self, ids: Tensor) -> Tensor:
            x = self.tokens(ids) + self.positions(torch.arange(ids.shape[1]))
            return self.head(self.ln(self.blocks(x)))

    return Model()
