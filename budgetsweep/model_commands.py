"""What is done with a trained model: measured, converted, continued from."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape

from budgetsweep.config import parse
from budgetsweep.display import PrepareDisplay, WorkDisplay
from budgetsweep.errors import CheckpointError, ConfigError
from trainer.config import DataConfig
from trainer.threads import prepare_environment

if TYPE_CHECKING:
    from trainer.formats import Format, LoadedModel
    from trainer.heldout import HeldOut

EVALUATION_TOKENS = 8192
"""Tokens evaluated at once where no run's batch size is known."""


def evaluate_command(
    console: Console,
    *,
    model: Path,
    source: str | None,
    text_field: str | None,
    tokenizer: str | None,
    n_head: int | None,
    seq_len: int | None,
    val_tokens: int | None,
    drop_last: bool,
    cache_dir: Path | None,
    as_json: bool,
    device: str,
) -> None:
    """Measure a model on its run's validation text or on a held-out file."""
    prepare_environment()
    from trainer.device import autocast_context, torch_device
    from trainer.formats import open_model
    from trainer.validation import validate

    loaded = open_model(model, n_head, tokenizer)
    progress = None if as_json else PrepareDisplay(console)  # nothing but JSON goes to a script
    held_out = _held_out(loaded, source, text_field, val_tokens, cache_dir, progress)
    config, shape = loaded.config, loaded.shape
    seq_len = seq_len or (config.seq_len if config else shape.n_positions)
    if seq_len > shape.n_positions:
        raise ConfigError(
            f"--seq-len {seq_len}: the model has positions for {shape.n_positions} tokens"
        )
    where = torch_device(device)
    result = validate(
        loaded.model.to(where), held_out.ids, seq_len=seq_len, device=where,
        batch_size=config.batch_size if config else max(1, EVALUATION_TOKENS // seq_len),
        autocast=autocast_context(config, where) if config else contextlib.nullcontext(),
        bytes_per_token=held_out.bytes_per_token, drop_last=drop_last,
    )  # fmt: skip
    if not math.isfinite(result.loss_nats):
        raise CheckpointError(f"{loaded.path}: its loss is {result.loss_nats}: damaged weights?")
    if as_json:
        facts = {"data": held_out.description, "data_tokens": len(held_out.ids)}
        facts |= {"seq_len": seq_len, "tokenizer": loaded.tokenizer}
        console.print_json(json.dumps({**dataclasses.asdict(result), **facts}))
        return
    bits = "" if result.bits_per_byte is None else f"  {result.bits_per_byte:.4f} bits per byte"
    spread = "" if result.stderr_nats is None else f" ± {result.stderr_nats:.4f}"
    console.print(
        f"val loss {result.loss_nats:.4f}{spread}  PPL {result.ppl:,.2f}{bits}  "
        f"on {result.n_tokens:,} tokens in windows of {seq_len} ({escape(held_out.description)})",
        highlight=False,
    )


def _held_out(
    loaded: LoadedModel,
    source: str | None,
    text_field: str | None,
    val_tokens: int | None,
    cache_dir: Path | None,
    on_progress: PrepareDisplay | None,
) -> HeldOut:
    """A file's tokens; without one the run's own validation text, or that of a named source."""
    from trainer.corpus import is_hub
    from trainer.heldout import HeldOut, check_ids, read_held_out
    from trainer.prepare import open_prepared, prepare

    own = loaded.config.data if loaded.config else None
    text_field = text_field or (own.text_field if own else "text")
    named = source is not None and (source == "demo" or is_hub(source))
    if source is not None and not named and Path(source).expanduser().is_file():
        return read_held_out(
            Path(source).expanduser(), loaded.tokenizer, loaded.shape.n_vocab,
            text_field=text_field, n_tokens=val_tokens,
        )  # fmt: skip
    if source is not None:
        data = parse(DataConfig, {"source": source, "text_field": text_field}, "--data")
    elif own is not None:
        data = own
    else:
        raise ConfigError(
            f"{loaded.path}: no config.yaml beside it names a validation text: give --data FILE"
        )
    if loaded.tokenizer is None:
        raise ConfigError(f"{data.source}: text needs the model's tokenizer: give --tokenizer")
    if val_tokens is not None:
        data = data.model_copy(update={"val_tokens": val_tokens})
    prepare(
        data, loaded.tokenizer, train_tokens=data.train_tokens or 1,
        val_tokens=data.val_tokens, cache_dir=cache_dir, on_progress=on_progress,
    )  # fmt: skip
    tokens = open_prepared(
        data.model_copy(update={"train_tokens": None}), loaded.tokenizer, cache_dir
    )
    check_ids(tokens.val, loaded.shape.n_vocab, data.source)
    return HeldOut(tokens.val, tokens.bytes_per_token, f"validation part of {tokens.description}")


def convert_command(
    console: Console,
    *,
    model: Path,
    to: Format,
    output_dir: Path,
    n_head: int | None,
    tokenizer: str | None,
) -> None:
    """Write a model in another format."""
    prepare_environment()
    from trainer.formats import convert, open_model

    files = convert(open_model(model, n_head, tokenizer), to, output_dir)
    names = ", ".join(file.name for file in files)
    console.print(f"{escape(str(output_dir))}: {names}", highlight=False)


def generate_command(
    console: Console,
    *,
    model: Path,
    prefixes: Path,
    temperatures: tuple[float, ...],
    max_new_tokens: int,
    top_k: int | None,
    top_p: float | None,
    seed: int,
    ignore_eot: bool,
    batch_size: int,
    out: Path,
    n_head: int | None,
    tokenizer: str | None,
    device: str,
) -> None:
    """Continue prefixes with a trained model."""
    prepare_environment()
    from budgetsweep.generating import (
        Sample,
        check_writable,
        print_side_by_side,
        read_prefixes,
        write_samples,
    )
    from model.config import SamplingConfig

    samplings = [
        parse(SamplingConfig, {"temperature": t, "top_k": top_k, "top_p": top_p}, "generate")
        for t in dict.fromkeys(temperatures)
    ]
    texts = read_prefixes(prefixes)
    check_writable(out, prefixes)
    from model.generation import continue_texts
    from trainer.device import torch_device
    from trainer.formats import open_model
    from trainer.tokenizers import load_tokenizer

    loaded = open_model(model, n_head, tokenizer)
    if loaded.tokenizer is None:
        raise ConfigError(f"{loaded.path}: nothing tells its tokenizer: give --tokenizer")
    where = torch_device(device)
    encoding = load_tokenizer(loaded.tokenizer)
    network = loaded.model.to(where)
    if (top_k or top_p) and not any(sampling.temperature for sampling in samplings):
        console.print("--top-k and --top-p change nothing at temperature 0", highlight=False)
    samples: list[list[Sample]] = [[] for _ in texts]
    per_temperature = len(texts) * max_new_tokens
    total = per_temperature * len(samplings)
    with WorkDisplay(console, total=total, verb="generating", unit="tokens") as display:
        for n, sampling in enumerate(samplings):
            continuations = continue_texts(
                network, where, encoding, texts, batch_size, max_new_tokens, sampling,
                seed=seed, stop_at_eot=not ignore_eot,
                on_progress=functools.partial(display.update, before=n * per_temperature),
            )  # fmt: skip
            for row, text, continuation in zip(samples, texts, continuations, strict=True):
                row.append(Sample.of(text, sampling, seed, continuation))
    write_samples(out, samples)
    print_side_by_side(samples, console)
    console.print(f"{len(texts) * len(samplings):,} continuations in {escape(str(out))}",
                  highlight=False)  # fmt: skip
