"""What is done with a trained model: `budgetsweep evaluate` and `budgetsweep convert`."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from budgetsweep.cli.options import (
    FILE,
    FOLDER,
    cache_dir_option,
    device_option,
    json_option,
    model_options,
)
from budgetsweep.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    import torch

    from trainer.config import RunConfig
    from trainer.data.held_out import HeldOut
    from trainer.data.shards.progress import PrepareProgress
    from trainer.evaluation import Validation
    from trainer.export.formats import Format

EVALUATION_TOKENS = 8192
"""Tokens evaluated at once where no run's batch size is known."""
FORMAT_NAMES = ("safetensors", "gpt2", "pt")


@click.command("evaluate")
@click.argument("model", type=FILE)
@click.option(
    "--data", "source", metavar="FILE",
    help="Held-out text or token file, measured whole [default: the run's own validation split].",
)  # fmt: skip
@click.option("--text-field", metavar="NAME", help="Field of a JSON document with the text.")
@click.option("--seq-len", type=click.IntRange(2), help="Tokens in a window [default: the run's].")
@click.option("--val-tokens", type=click.IntRange(1), help="Only the first so many tokens.")
@model_options
@cache_dir_option
@json_option
@device_option
def evaluate_command(
    model: Path, source: str | None, text_field: str | None, seq_len: int | None,
    val_tokens: int | None, n_head: int | None, tokenizer: str | None,
    cache_dir: Path | None, as_json: bool, device: str,
) -> None:  # fmt: skip
    """Measure loss, perplexity and bits per byte of a trained model.

    MODEL is a run's folder, a model.pt, the course's too, or a converted model. A FILE is text,
    JSON lines, parquet, the course's .npz (its array val), or .npy; c4, demo, hub:owner/name
    and folders stand for their validation split.
    """
    from dataclasses import asdict

    from budgetsweep.cli.display import new_console, prepare_display
    from trainer.config import PREDICTED
    from trainer.evaluation import validate
    from trainer.export.formats import open_model, run_beside
    from trainer.hardware.device import autocast_context, enough_memory, torch_device

    console, where = new_console(), torch_device(device)
    progress = None if as_json else prepare_display(console)  # nothing but JSON goes to a script
    held_out_of = functools.partial(_held_out, source, text_field, val_tokens, cache_dir, progress)
    run = run_beside(model)
    if run is not None and run.architecture != "decoder":
        if seq_len:
            raise ConfigError(
                f"--seq-len: {model} holds an {run.architecture}, which is measured as it was "
                "trained"
            )
        with enough_memory("its batch is that of the run's batch_size"):
            path, held_out, result = _evaluate_trained(model, where, held_out_of)
        tokenizer, seq_len = run.tokenizer_encoding, run.seq_len
    else:
        loaded = open_model(model, n_head, tokenizer)
        config, shape = loaded.config, loaded.shape
        held_out = held_out_of(loaded.path, config, loaded.tokenizer, shape.n_vocab)
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
                bytes_per_token=held_out.bytes_per_token,
            )  # fmt: skip
        path, tokenizer = loaded.path, loaded.tokenizer
    if not math.isfinite(result.loss_nats):
        raise CheckpointError(f"{path}: its loss is {result.loss_nats}: damaged weights?")
    if as_json:
        facts = {"data": held_out.description, "data_tokens": len(held_out.ids)}
        facts |= {"seq_len": seq_len, "tokenizer": tokenizer}
        console.print_json(data={**asdict(result), **facts})
        return
    what = PREDICTED[run.architecture if run else "decoder"]
    bits = "" if result.bits_per_byte is None else f"  {result.bits_per_byte:.4f} bits per byte"
    spread = "" if result.stderr_nats is None else f" ± {result.stderr_nats:.4f}"
    console.print(
        f"val loss {result.loss_nats:.4f}{spread}  PPL {result.ppl:,.2f}{bits}  "
        f"on {result.n_tokens:,} {what}s in windows of {seq_len} ({held_out.description})",
    )


def _evaluate_trained(
    model: Path, where: torch.device, held_out_of: Callable[..., HeldOut]
) -> tuple[Path, HeldOut, Validation]:
    """Measure an encoder or an encoder-decoder."""
    from trainer.data.shards.tokens import TokenArray
    from trainer.export.trained import evaluate_trained, held_out_data, open_trained

    trained = open_trained(model, where)
    config, path = trained.config, trained.path
    held_out = held_out_of(path, config, config.tokenizer_encoding, config.model.n_vocab)
    ids = held_out.ids
    if not isinstance(ids, TokenArray):
        ids = TokenArray.from_arrays([ids])
    data = held_out_data(trained, ids, held_out.description, pairs=held_out.pairs)
    return path, held_out, evaluate_trained(trained, data, where)


def _held_out(
    source: str | None, text_field: str | None, n_tokens: int | None, cache_dir: Path | None,
    progress: Callable[[PrepareProgress], None] | None,
    path: Path, config: RunConfig | None, tokenizer: str | None, n_vocab: int,
) -> HeldOut:  # fmt: skip
    """A file's tokens; without one the run's own validation split, or that of a named source."""
    from budgetsweep.config import parse
    from trainer.data.config import DataConfig
    from trainer.data.held_out import HeldOut, read_held_out
    from trainer.data.prepare import prepare
    from trainer.data.sources import source_class
    from trainer.data.sources.course_npz import check_ids

    own = config.data if config else None
    text_field = text_field or (own.text_field if own else "text")
    if source is not None and source_class(source).is_file(source):
        file = Path(source).expanduser()
        return read_held_out(file, tokenizer, n_vocab, text_field=text_field, n_tokens=n_tokens)
    if source is not None:
        data = parse(DataConfig, {"source": source, "text_field": text_field}, "--data")
    elif own is not None:
        data = own
    else:
        raise ConfigError(
            f"{path}: no config.yaml beside it names validation data: give --data FILE"
        )
    if tokenizer is None:
        raise ConfigError(f"{data.source}: text needs the model's tokenizer: give --tokenizer")
    if n_tokens is not None:
        data = data.model_copy(update={"val_tokens": n_tokens})
    tokens = prepare(
        data, tokenizer, train_tokens=data.train_tokens or 1,
        val_tokens=data.val_tokens, cache_dir=cache_dir, on_progress=progress,
    )  # fmt: skip
    check_ids(tokens.val, n_vocab, data.source)
    return HeldOut(
        tokens.val, tokens.bytes_per_token, f"validation part of {tokens.description}", tokens.pairs
    )


@click.command("convert")
@click.argument("model", type=FILE)
@click.option(
    "--to", required=True, type=click.Choice(FORMAT_NAMES),
    help="gpt2: for transformers' GPT2LMHeadModel; pt: model.pt.",
)  # fmt: skip
@click.option("--output-dir", "-o", required=True, type=FOLDER, help="New folder to write.")
@model_options
def convert_command(
    model: Path, to: Format, output_dir: Path, n_head: int | None, tokenizer: str | None
) -> None:
    """Write a trained model as safetensors, for transformers, or as model.pt.

    MODEL is a run's folder, a model.pt, the course's too, or a converted model.
    """
    from trainer.export.formats import convert, open_model

    files = convert(open_model(model, n_head, tokenizer), to, output_dir)
    click.echo(f"{output_dir}: {', '.join(file.name for file in files)}")
