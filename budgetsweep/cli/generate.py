"""`budgetsweep generate`: prefixes in, continuations out, side by side."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from budgetsweep.cli.options import FILE, check_writable, device_option, model_options, writing
from budgetsweep.errors import ConfigError, DataError

if TYPE_CHECKING:
    import torch
    from rich.console import Console

    from model.generation.decoding import Continuation

EXAMPLE = '{"prefix": "..."}'
SHOWN_PREFIXES = 20
"""Rows of the table; the file has them all."""


class Sample(NamedTuple):
    """One line of generation.jsonl."""

    prefix: str
    temperature: float
    generation: str
    """The continuation only."""
    n_tokens: int
    """Tokens of the continuation."""
    finish_reason: str
    """`length`: --max-new-tokens reached; `eot`: ended by an end-of-text token."""
    top_k: int | None
    top_p: float | None
    seed: int


@click.command("generate")
@click.argument("model", type=FILE)
@click.option(
    "--prefixes", type=FILE, required=True, metavar="FILE",
    help=f"One {EXAMPLE} a line.",
)  # fmt: skip
@click.option(
    "--temperature", "temperatures", type=float, multiple=True, default=(0.0,), show_default=True,
    help="0: always the most likely token (repeatable: side by side).",
)  # fmt: skip
@click.option(
    "--max-new-tokens", type=click.IntRange(1), default=64, show_default=True,
    help="Most tokens of a continuation.",
)  # fmt: skip
@click.option("--top-k", type=int, help="Draw from the k most likely tokens only.")
@click.option(
    "--top-p", type=float, help="Draw from the fewest tokens that make up this probability."
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the draws.")
@click.option(
    "--ignore-eot", is_flag=True, help="Write on behind an end-of-text token, as the course does."
)
@click.option(
    "--batch-size", type=click.IntRange(1), default=16, show_default=True, help="Prefixes at once."
)
@click.option(
    "--out", type=FILE, default="generation.jsonl", show_default=True,
    metavar="FILE", help="File to write.",
)  # fmt: skip
@model_options
@device_option
def generate_command(
    model: Path, prefixes: Path, temperatures: tuple[float, ...], max_new_tokens: int,
    top_k: int | None, top_p: float | None, seed: int, ignore_eot: bool, batch_size: int, out: Path,
    n_head: int | None, tokenizer: str | None, device: str,
) -> None:  # fmt: skip
    """Let a trained model continue texts, at several temperatures side by side.

    MODEL is a run's folder, a model.pt, the course's too, or a converted model.

    A context longer than the model's n_positions loses its older half: the newer half is read
    again from position 0. Of a longer prefix the last n_positions tokens count.
    """
    from budgetsweep.cli.display import new_console, work_display
    from budgetsweep.config import parse
    from budgetsweep.files import write_text_atomically
    from model.config import SamplingConfig

    samplings = [
        parse(SamplingConfig, {"temperature": t, "top_k": top_k, "top_p": top_p}, "generate")
        for t in dict.fromkeys(temperatures)
    ]
    texts = read_prefixes(prefixes)
    if out.is_dir():
        raise ConfigError(f"--out {out}: is a folder; expected the name of a file")
    if out.exists() and out.samefile(prefixes):
        raise ConfigError(f"--out {out}: is the file of the prefixes; give another name")
    check_writable(out, out.parent)
    from trainer.hardware.device import enough_memory, torch_device

    where, console = torch_device(device), new_console()
    write = _open(model, where, n_head, tokenizer, max_new_tokens)
    if (top_k or top_p) and not any(sampling.temperature for sampling in samplings):
        console.print("--top-k and --top-p change nothing at temperature 0")
    samples: list[list[Sample]] = [[] for _ in texts]
    per_temperature = len(texts) * max_new_tokens
    total = per_temperature * len(samplings)
    smaller = enough_memory(f"give a --batch-size below {batch_size}")
    with smaller, work_display(console, total=total, verb="generating", unit="tokens") as show:
        for n, sampling in enumerate(samplings):
            continuations = write(
                texts, batch_size, max_new_tokens, sampling,
                seed=seed, stop_at_eot=not ignore_eot,
                on_progress=lambda done, before=n * per_temperature: show(before + done),
            )  # fmt: skip
            for row, text, made in zip(samples, texts, continuations, strict=True):
                row.append(Sample(text, sampling.temperature, made.text, len(made.ids),
                                  made.finish_reason, top_k, top_p, seed))  # fmt: skip
    lines = [json.dumps(sample._asdict(), ensure_ascii=False) for row in samples for sample in row]
    with writing(out):
        write_text_atomically(out, "\n".join(lines) + "\n")
    print_side_by_side(samples, console)
    console.print(f"{len(lines):,} continuations in {out}")


def _open(
    path: Path, where: torch.device, n_head: int | None, tokenizer: str | None, max_new_tokens: int
) -> Callable[..., list[Continuation]]:
    """What continues texts with a decoder, or writes the targets of an encoder-decoder."""
    from model.encoder_decoder import EncoderDecoderLM
    from model.generation.decoding import continue_texts
    from model.generation.encoder_decoder import write_targets
    from trainer.data.tokenizers import load_tokenizer
    from trainer.export.formats import open_model, run_beside
    from trainer.export.trained import open_trained

    run = run_beside(path)
    if run is None or run.architecture == "decoder":
        loaded = open_model(path, n_head, tokenizer)
        if loaded.tokenizer is None:
            raise ConfigError(f"{loaded.path}: its tokenizer is not known: give --tokenizer")
        encoding = load_tokenizer(loaded.tokenizer)
        return functools.partial(continue_texts, loaded.model.to(where), where, encoding)
    trained = open_trained(path, where)
    if not isinstance(trained.model, EncoderDecoderLM):
        raise ConfigError(
            f"{path}: holds an encoder, which names masked tokens and continues no text; expected "
            "a decoder or an encoder-decoder"
        )
    longest = trained.model.shape.n_target_positions
    if max_new_tokens > longest:
        raise ConfigError(
            f"--max-new-tokens {max_new_tokens}: the model has positions for targets of "
            f"{longest} tokens"
        )
    encoding = load_tokenizer(trained.config.tokenizer_encoding)
    return functools.partial(write_targets, trained.model, where, encoding)


def read_prefixes(path: Path) -> list[str]:
    """The prefixes of a .jsonl file, in order; blank lines are passed over, other keys ignored.

    Raises:
        DataError: the file is missing, empty or not UTF-8, or a line (named by its number) is not
            JSON or has no string under "prefix".
    """
    from pydantic import BaseModel, ValidationError

    from studies.csv_files import read_text

    class Line(BaseModel):
        prefix: str

    wanted = f"one {EXAMPLE} a line"
    text = read_text(path, wanted=wanted, expected=f"expected {wanted}")
    prefixes = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            prefixes.append(Line.model_validate_json(line).prefix)
        except ValidationError as error:
            problem = error.errors()[0]
            at = "".join(f"{key}: " for key in problem["loc"])
            why = at + problem["msg"].replace(" at line 1 ", ", ")
            raise DataError(f"{path}, line {number}: {why}; expected {EXAMPLE}") from error
    return prefixes


def print_side_by_side(samples: Sequence[Sequence[Sample]], console: Console) -> None:
    """A row a prefix, a column a temperature."""
    from rich.table import Column

    from budgetsweep.cli.display import framed, visible

    heads = ("prefix", *(f"temperature {sample.temperature:g}" for sample in samples[0]))
    table = framed(console, *(Column(head, overflow="fold") for head in heads))
    table.show_lines = console.is_terminal
    for row in samples[:SHOWN_PREFIXES]:
        cells = [row[0].prefix, *(sample.generation for sample in row)]
        table.add_row(*(visible(cell, console) or "(empty)" for cell in cells))
    console.print(table)
    if len(samples) > SHOWN_PREFIXES:
        console.print(f"... and {len(samples) - SHOWN_PREFIXES:,} more prefixes")
