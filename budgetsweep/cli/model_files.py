"""What is done with a trained model: measured, converted, continued from."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from rich.console import Console
from rich.markup import escape

from budgetsweep.cli.display import PrepareDisplay, WorkDisplay
from budgetsweep.config import parse
from budgetsweep.errors import CheckpointError, ConfigError
from trainer.config import PREDICTED, RunConfig
from trainer.data.config import DataConfig
from trainer.hardware.environment import prepare_environment

if TYPE_CHECKING:
    import torch

    from model.generation.decoding import Continuation
    from trainer.data.held_out import HeldOut
    from trainer.evaluation import Validation
    from trainer.export.formats import Format

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
    from trainer.evaluation import validate
    from trainer.export.formats import open_model, run_beside
    from trainer.hardware.device import autocast_context, enough_memory, torch_device

    where = torch_device(device)
    progress = None if as_json else PrepareDisplay(console)  # nothing but JSON goes to a script
    text = _TextWanted(source, text_field, val_tokens, cache_dir, progress)
    run = run_beside(model)
    if run is not None and run.architecture != "decoder":
        for option, value in (("--seq-len", seq_len), ("--drop-last", drop_last)):
            if value:
                raise ConfigError(f"{option}: {model} holds an {run.architecture}, which is "
                                  "measured as it was trained")  # fmt: skip
        with enough_memory("its batch is that of the run's batch_size"):
            path, held_out, result = _evaluate_trained(model, where, text)
        tokenizer, seq_len = run.tokenizer_encoding, run.seq_len
    else:
        loaded = open_model(model, n_head, tokenizer)
        owner = _Owner(loaded.path, loaded.config, loaded.tokenizer, loaded.shape.n_vocab)
        held_out = _held_out(owner, text)
        config, shape = loaded.config, loaded.shape
        seq_len = seq_len or (config.seq_len if config else shape.n_positions)
        if seq_len > shape.n_positions:
            raise ConfigError(
                f"--seq-len {seq_len}: the model has positions for {shape.n_positions} tokens"
            )
        with enough_memory("give a shorter --seq-len"):
            result = validate(
                loaded.model.to(where), held_out.ids, seq_len=seq_len, device=where,
                batch_size=config.batch_size if config else max(1, EVALUATION_TOKENS // seq_len),
                autocast=autocast_context(config, where) if config else contextlib.nullcontext(),
                bytes_per_token=held_out.bytes_per_token, drop_last=drop_last,
            )  # fmt: skip
        path, tokenizer = loaded.path, loaded.tokenizer
    if not math.isfinite(result.loss_nats):
        raise CheckpointError(f"{path}: its loss is {result.loss_nats}: damaged weights?")
    if as_json:
        facts = {"data": held_out.description, "data_tokens": len(held_out.ids)}
        facts |= {"seq_len": seq_len, "tokenizer": tokenizer}
        console.print_json(json.dumps({**dataclasses.asdict(result), **facts}))
        return
    what = PREDICTED[run.architecture if run else "decoder"]
    bits = "" if result.bits_per_byte is None else f"  {result.bits_per_byte:.4f} bits per byte"
    spread = "" if result.stderr_nats is None else f" ± {result.stderr_nats:.4f}"
    console.print(
        f"val loss {result.loss_nats:.4f}{spread}  PPL {result.ppl:,.2f}{bits}  "
        f"on {result.n_tokens:,} {what}s in windows of {seq_len} ({escape(held_out.description)})",
        highlight=False,
    )


class _Owner(NamedTuple):
    """What the text must fit."""

    path: Path
    config: RunConfig | None
    tokenizer: str | None
    n_vocab: int


class _TextWanted(NamedTuple):
    """The text that the user asked for."""

    source: str | None
    text_field: str | None
    val_tokens: int | None
    cache_dir: Path | None
    on_progress: PrepareDisplay | None


def _evaluate_trained(
    model: Path, where: torch.device, text: _TextWanted
) -> tuple[Path, HeldOut, Validation]:
    """Measure an encoder or an encoder-decoder."""
    from trainer.data.shards.tokens import TokenArray
    from trainer.export.trained import evaluate_trained, held_out_data, open_trained

    trained = open_trained(model, where)
    config = trained.config
    encoding = config.tokenizer_encoding
    owner = _Owner(trained.path, config, encoding, config.model.n_vocab)
    held_out = _held_out(owner, text)
    ids = held_out.ids
    if not isinstance(ids, TokenArray):
        ids = TokenArray.from_arrays([ids])
    data = held_out_data(trained, ids, held_out.description, pairs=held_out.pairs)
    return trained.path, held_out, evaluate_trained(trained, data, where)


def _held_out(owner: _Owner, text: _TextWanted) -> HeldOut:
    """A file's tokens; without one the run's own validation text, or that of a named source."""
    from trainer.data.held_out import HeldOut, check_ids, read_held_out
    from trainer.data.prepare import open_prepared, prepare
    from trainer.data.sources.corpus import is_hub

    source, tokenizer = text.source, owner.tokenizer
    own = owner.config.data if owner.config else None
    text_field = text.text_field or (own.text_field if own else "text")
    named = source is not None and (source == "demo" or is_hub(source))
    if source is not None and not named and Path(source).expanduser().is_file():
        return read_held_out(
            Path(source).expanduser(), tokenizer, owner.n_vocab,
            text_field=text_field, n_tokens=text.val_tokens,
        )  # fmt: skip
    if source is not None:
        data = parse(DataConfig, {"source": source, "text_field": text_field}, "--data")
    elif own is not None:
        data = own
    else:
        raise ConfigError(
            f"{owner.path}: no config.yaml beside it names a validation text: give --data FILE"
        )
    if tokenizer is None:
        raise ConfigError(f"{data.source}: text needs the model's tokenizer: give --tokenizer")
    if text.val_tokens is not None:
        data = data.model_copy(update={"val_tokens": text.val_tokens})
    prepare(
        data, tokenizer, train_tokens=data.train_tokens or 1,
        val_tokens=data.val_tokens, cache_dir=text.cache_dir, on_progress=text.on_progress,
    )  # fmt: skip
    tokens = open_prepared(
        data.model_copy(update={"train_tokens": None}), tokenizer, text.cache_dir
    )
    check_ids(tokens.val, owner.n_vocab, data.source)
    return HeldOut(
        tokens.val, tokens.bytes_per_token, f"validation part of {tokens.description}", tokens.pairs
    )


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
    from trainer.export.formats import convert, open_model

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
    from budgetsweep.cli.generate import (
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
    from model.encoder_decoder import EncoderDecoderLM
    from model.generation.decoding import continue_texts
    from model.generation.encoder_decoder import write_targets
    from trainer.data.tokenizers import load_tokenizer
    from trainer.export.formats import open_model, run_beside
    from trainer.export.trained import open_trained
    from trainer.hardware.device import enough_memory, torch_device

    where = torch_device(device)
    run = run_beside(model)
    if run is not None and run.architecture == "encoder":
        raise ConfigError(
            f"{model}: holds an encoder, which names masked tokens and continues no text; expected "
            "a decoder or an encoder-decoder"
        )
    write: Callable[..., list[Continuation]]
    if run is not None and run.architecture == "encoder-decoder":
        trained = open_trained(model, where)
        assert isinstance(trained.model, EncoderDecoderLM)
        longest = trained.model.shape.n_target_positions
        if max_new_tokens > longest:
            raise ConfigError(
                f"--max-new-tokens {max_new_tokens}: the model has positions for targets of "
                f"{longest} tokens"
            )
        write = functools.partial(write_targets, trained.model)
        encoding = load_tokenizer(trained.config.tokenizer_encoding)
    else:
        loaded = open_model(model, n_head, tokenizer)
        if loaded.tokenizer is None:
            raise ConfigError(f"{loaded.path}: nothing tells its tokenizer: give --tokenizer")
        encoding = load_tokenizer(loaded.tokenizer)
        write = functools.partial(continue_texts, loaded.model.to(where))
    if (top_k or top_p) and not any(sampling.temperature for sampling in samplings):
        console.print("--top-k and --top-p change nothing at temperature 0", highlight=False)
    samples: list[list[Sample]] = [[] for _ in texts]
    per_temperature = len(texts) * max_new_tokens
    total = per_temperature * len(samplings)
    smaller = enough_memory(f"give a --batch-size below {batch_size}")
    with smaller, WorkDisplay(console, total=total, verb="generating", unit="tokens") as display:
        for n, sampling in enumerate(samplings):
            continuations = write(
                where, encoding, texts, batch_size, max_new_tokens, sampling,
                seed=seed, stop_at_eot=not ignore_eot,
                on_progress=functools.partial(display.update, before=n * per_temperature),
            )  # fmt: skip
            for row, text, continuation in zip(samples, texts, continuations, strict=True):
                row.append(Sample.of(text, sampling, seed, continuation))
    write_samples(out, samples)
    print_side_by_side(samples, console)
    console.print(f"{len(texts) * len(samplings):,} continuations in {escape(str(out))}",
                  highlight=False)  # fmt: skip
