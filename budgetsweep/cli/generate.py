"""Prefixes in, continuations out: the files and the table of `budgetsweep generate`. No torch."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from budgetsweep.errors import ConfigError, DataError
from budgetsweep.files import write_text_atomically

if TYPE_CHECKING:
    from model.config import SamplingConfig
    from model.generation.decoding import Continuation

SHOWN_PREFIXES = 20
"""Rows of the table; the file has them all."""


@dataclasses.dataclass(frozen=True)
class Sample:
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
    lines = [
        json.dumps(dataclasses.asdict(sample), ensure_ascii=False) + "\n"
        for row in samples
        for sample in row
    ]
    try:
        write_text_atomically(out, "".join(lines))
    except OSError as error:
        raise _cannot_write(out, error) from error


def _cannot_write(out: Path, error: OSError) -> ConfigError:
    return ConfigError(f"--out {out}: cannot be written ({error.strerror})")


def print_side_by_side(samples: Sequence[Sequence[Sample]], console: Console) -> None:
    """A row a prefix, a column a temperature."""
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
        console.print(f"... and {len(samples) - SHOWN_PREFIXES:,} more prefixes", highlight=False)


def _visible(text: str, encoding: str) -> str:
    """Text that leaves the terminal alone: control characters and line ends as escapes."""
    if not text:
        return "(empty)"
    escaped = "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text
    )
    return escaped.encode(encoding, errors="replace").decode(encoding)
