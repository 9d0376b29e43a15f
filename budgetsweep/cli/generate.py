"""`budgetsweep generate`: prefixes in, continuations out, side by side."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from budgetsweep.cli.options import FILE, device_option, model_options
from budgetsweep.errors import ConfigError, DataError

if TYPE_CHECKING:
    from rich.console import Console

    from model.config import SamplingConfig
    from model.generation.decoding import Continuation

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

    @classmethod
    def of(
        cls, prefix: str, sampling: SamplingConfig, seed: int, continuation: Continuation
    ) -> Sample:
        """What one sampling made of one prefix."""
        return cls(
            prefix=prefix, temperature=sampling.temperature, generation=continuation.text,
            n_tokens=len(continuation.ids), finish_reason=continuation.finish_reason,
            top_k=sampling.top_k, top_p=sampling.top_p, seed=seed,
        )  # fmt: skip


@click.command("generate")
@click.argument("model", type=FILE)
@click.option(
    "--prefixes", type=FILE, required=True, metavar="FILE",
    help='One {"prefix": "..."} a line.',
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
    from trainer.hardware.environment import prepare_environment

    prepare_environment()
    from budgetsweep.cli.display import WorkDisplay, new_console
    from budgetsweep.config import parse
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

    where, console = torch_device(device), new_console()
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
        assert isinstance(trained.model, EncoderDecoderLM)
        write = functools.partial(write_targets, trained.model)
        encoding = load_tokenizer(trained.config.tokenizer_encoding)
    else:
        loaded = open_model(model, n_head, tokenizer)
        if loaded.tokenizer is None:
            raise ConfigError(f"{loaded.path}: its tokenizer is not known: give --tokenizer")
        encoding = load_tokenizer(loaded.tokenizer)
        write = functools.partial(continue_texts, loaded.model.to(where))
    if (top_k or top_p) and not any(sampling.temperature for sampling in samplings):
        console.print("--top-k and --top-p change nothing at temperature 0")
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
    console.print(f"{len(texts) * len(samplings):,} continuations in {out}")


def read_prefixes(path: Path) -> list[str]:
    """The prefixes of a .jsonl file, in order; blank lines are passed over, other keys ignored.

    Raises:
        DataError: the file is missing or has no prefix, or a line (named by its number) is not
            UTF-8, not JSON, or has no string under "prefix".
    """
    try:
        raw = path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(f'{path}: no such file; expected one {{"prefix": "..."}} a line') from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    prefixes = []
    for number, line in enumerate(raw.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if line.strip():
            prefixes.append(_prefix(line, f"{path}, line {number}"))
    if not prefixes:
        raise DataError(f'{path}: no prefixes; expected one {{"prefix": "..."}} a line')
    return prefixes


def _prefix(line: bytes, where: str) -> str:
    expected = 'expected {"prefix": "..."}'
    try:
        record = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: not UTF-8 text (byte {error.start} of the line)") from error
    except json.JSONDecodeError as error:
        raise DataError(
            f"{where}: not JSON ({error.msg}, column {error.colno}); {expected}"
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: cannot be read as JSON; {expected}") from error
    if not isinstance(record, dict):
        raise DataError(f"{where}: {expected}, found {_kind(record)}")
    if "prefix" not in record:
        found = ", ".join(map(repr, record)) or "none"
        raise DataError(f'{where}: no key "prefix"; {expected}, found the keys: {found}')
    prefix = record["prefix"]
    if not isinstance(prefix, str):
        raise DataError(f'{where}: "prefix" is {_kind(prefix)}; expected a string')
    try:
        prefix.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f'{where}: "prefix" has half of a surrogate pair (character {error.start}), which is '
            "no Unicode text"
        ) from error
    return prefix


def _kind(value: Any) -> str:
    names = {
        dict: "an object", list: "a list", str: "a string", bool: "true or false",
        int: "a number", float: "a number",
    }  # fmt: skip
    return names.get(type(value), "null")


def check_writable(out: Path, prefixes: Path) -> None:
    """Find out before the work whether its result can be written.

    Raises:
        ConfigError: `out` is a folder, the file of the prefixes, or cannot be written.
    """
    if out.is_dir():
        raise ConfigError(f"--out {out}: is a folder; expected the name of a file")
    if out.exists() and out.samefile(prefixes):
        raise ConfigError(f"--out {out}: is the file of the prefixes; give another name")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _cannot_write(out, error) from error
    if not os.access(out.parent, os.W_OK):
        raise ConfigError(f"--out {out}: its folder cannot be written to; give another name")


def write_samples(out: Path, samples: Sequence[Sequence[Sample]]) -> None:
    """Write one JSON object a line, all or nothing.

    Raises:
        ConfigError: the file cannot be written.
    """
    from budgetsweep.files import write_text_atomically

    lines = [
        json.dumps(sample._asdict(), ensure_ascii=False) + "\n" for row in samples for sample in row
    ]
    try:
        write_text_atomically(out, "".join(lines))
    except OSError as error:
        raise _cannot_write(out, error) from error


def _cannot_write(out: Path, error: OSError) -> ConfigError:
    return ConfigError(f"--out {out}: cannot be written ({error.strerror})")


def print_side_by_side(samples: Sequence[Sequence[Sample]], console: Console) -> None:
    """A row a prefix, a column a temperature."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    if console.is_terminal:
        table = Table(box=box.ROUNDED, show_lines=True)
    else:
        table = Table(box=None, pad_edge=False)
    table.add_column("prefix", overflow="fold")
    for sample in samples[0]:
        table.add_column(f"temperature {sample.temperature:g}", overflow="fold")
    for row in samples[:SHOWN_PREFIXES]:
        cells = [row[0].prefix, *(sample.generation for sample in row)]
        table.add_row(*(Text(_visible(cell, console.encoding)) for cell in cells))
    console.print(table)
    if len(samples) > SHOWN_PREFIXES:
        console.print(f"... and {len(samples) - SHOWN_PREFIXES:,} more prefixes")


def _visible(text: str, encoding: str) -> str:
    """Text that leaves the terminal alone: control characters and line ends as escapes."""
    if not text:
        return "(empty)"
    escaped = "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text
    )
    return escaped.encode(encoding, errors="replace").decode(encoding)
