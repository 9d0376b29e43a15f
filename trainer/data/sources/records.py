"""Records of one file through `datasets`: text, JSON lines, JSON and parquet. No torch.

`datasets` opens and decompresses the files of the hub, and reads tables here and there. Lines of
text and JSON are split and decoded here, because its own readers give up a file at the first bad
line, read numbers and text in one field as something else, and drop `encoding` in compressed ones.
"""

from __future__ import annotations

import codecs
import contextlib
import dataclasses
import glob
import json
import logging
import re
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from budgetsweep.errors import DataError
from trainer.data.sources import Cursor, Record
from trainer.data.sources.local_files import PIECE_BYTES, LocalFile, decompressed

_ROWS = 64
PARQUET_ROWS = 512
BYTE_ORDER_MARK = codecs.BOM_UTF8
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


@contextlib.contextmanager
def datasets_library() -> Iterator[Any]:
    """The `datasets` library: quiet, with few retries, and not loading torch (a second, 200 MB).

    Its settings are those of the whole process; afterwards they are as they were.
    """
    import datasets
    from huggingface_hub.utils import logging as hub_logging

    config = datasets.config
    wanted = {
        "TORCH_AVAILABLE": config.TORCH_AVAILABLE and "torch" in sys.modules,
        # The hub's client retries each request for 23 s by itself; 20 rounds of that would hide a
        # lost network for eight minutes.
        "STREAMING_OPEN_MAX_RETRIES": 1,
        "STREAMING_READ_MAX_RETRIES": 1,
        "STREAMING_READ_RETRY_INTERVAL": 1,
    }
    before = {name: getattr(config, name) for name in wanted}
    levels = [(log, log.get_verbosity()) for log in (datasets.logging, hub_logging)]
    shows_bars = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    hub_logging.set_verbosity(logging.ERROR)
    for name, value in wanted.items():
        setattr(config, name, value)
    try:
        yield datasets
    finally:
        for name, value in before.items():
            setattr(config, name, value)
        for log, level in levels:
            log.set_verbosity(level)
        if shows_bars:
            datasets.enable_progress_bars()


@contextlib.contextmanager
def named_errors(path: str) -> Iterator[None]:
    """Failures of the libraries below become one line with the name of the file."""
    try:
        yield
    except (DataError, GeneratorExit, MemoryError):
        raise
    except EOFError as error:
        raise DataError(f"{path}: ends in the middle (truncated); fetch it again") from error
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(f"{path}: cannot be read ({reason})") from error


def remote_lines(url: str, longest: int | None = None) -> Iterator[bytes]:
    """Lines of a file of the hub (hf://…) without their ends; `longest` as in `local_lines`."""
    with datasets_library() as datasets:
        address = datasets.StreamingDownloadManager().download_and_extract(url)
        with datasets.utils.file_utils.xopen(address, "rb") as file:
            yield from _lines(iter(lambda: file.read(PIECE_BYTES), b""), longest)


def _lines(pieces: Iterable[bytes], longest: int | None) -> Iterator[bytes]:
    parts: list[bytes] = []
    size = 0
    for piece in pieces:
        head, *rest = piece.split(b"\n")
        if longest is None or size <= longest:
            parts.append(head)
            size += len(head)
        if rest:
            yield b"".join(parts).removesuffix(b"\r")
            for line in rest[:-1]:
                yield line.removesuffix(b"\r")
            parts, size = rest[-1:], len(rest[-1])
    if last := b"".join(parts):
        yield last


def local_lines(
    file: LocalFile, first: int, longest: int | None = None
) -> Iterator[tuple[int, bytes]]:
    """(number, line without its end) of a local file, compressed or not, from line `first` on.

    Args:
        first: line to begin at, from 0.
        longest: a line with more bytes may lose its end, but stays longer than this; None: whole
            lines, however long.

    Raises:
        DataError: the file cannot be read, is damaged or cut, or UTF-16.
    """
    with named_errors(str(file.path)):
        for number, line in enumerate(_lines(decompressed(file.path), longest)):
            if number == 0:
                if line.startswith(_UTF16):
                    raise DataError(f"{file.path}: UTF-16 text; save it as UTF-8")
                line = line.removeprefix(BYTE_ORDER_MARK)
            if number >= first:
                yield number, line


def json_records(
    file: LocalFile, index: int, first: int, field: str, label_field: str | None = None
) -> Iterator[Record]:
    """One record a line, blank lines passed over; the file may also be one JSON list."""
    for number, line in local_lines(file, first):
        if number == 0 and line.lstrip().startswith(b"["):
            yield from _json_list_records(file, index, field, label_field)
            return
        if record := json_line_record(line, index, number, field, label_field):
            yield record


def json_line_record(
    line: bytes, index: int, number: int, field: str, label_field: str | None = None
) -> Record | None:
    """The record of a line of JSON; None: a blank line."""
    if not line or line.isspace():
        return None
    value, problem = _parse_json_line(line, fields_of(field, label_field))
    text, label = None, None
    if value is not None:
        text, problem = _checked_text(value[field], field)
        label = value[label_field] if label_field else None
    return Record(index, number, text, problem, (index, number + 1), label=label)


def fields_of(text_field: str, label_field: str | None) -> list[str]:
    """The fields that are wanted of each document."""
    return [text_field] if label_field is None else [text_field, label_field]


def _parse_json_line(line: bytes, fields: list[str]) -> tuple[dict[str, Any] | None, str | None]:
    """(an object that has the fields, None) or (None, what is wrong)."""
    try:
        value = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError:
        return None, "not UTF-8"
    except json.JSONDecodeError as error:
        return None, f"not JSON ({error.msg} at column {error.colno})"
    except (ValueError, RecursionError):
        return None, "not JSON"
    if not isinstance(value, dict):
        return None, f"not a JSON object but {_json_kind(value)}"
    for field in fields:
        if field not in value:
            names = ", ".join(sorted(value)) or "none"
            return None, f"no field {field!r}; fields: {names[:200]}"
    return value, None


def _checked_text(value: Any, field: str) -> tuple[str | None, str | None]:
    if isinstance(value, str):
        return value, None
    return None, f"field {field!r} is {_json_kind(value)}, not text"


def _json_kind(value: Any) -> str:
    names = {type(None): "null", bool: "true/false", int: "a number", float: "a number"}
    names |= {list: "a list", dict: "an object", str: "text"}
    return names.get(type(value), f"a {type(value).__name__}")


def _stream(datasets: Any, file: LocalFile, builder: str, **options: Any) -> Any:
    """A table reader of `datasets` on one local file."""
    # Brackets and stars in a name are not a pattern.
    files = {"train": [glob.escape(str(file.path))]}
    loader = datasets.load_dataset_builder(builder, data_files=files, **options)
    return loader.as_streaming_dataset(split="train").with_format("arrow")


def _json_list_records(
    file: LocalFile, index: int, field: str, label_field: str | None
) -> Iterator[Record]:
    """Records of one JSON list; there is nowhere to go on from but its end."""
    with named_errors(str(file.path)), datasets_library() as datasets:
        pending: Record | None = None
        stream = _stream(datasets, file, "json")
        for record in column_records(stream, index, 0, field, str(file.path), label_field):
            if pending is not None:
                yield pending
            pending = dataclasses.replace(record, next=None)
        if pending is not None:
            yield dataclasses.replace(pending, next=(index + 1, 0))


def parquet_records(
    file: LocalFile, index: int, first: int, field: str, label_field: str | None = None
) -> Iterator[Record]:
    """One record a row of a parquet file."""
    wanted = fields_of(field, label_field)
    with named_errors(str(file.path)), datasets_library() as datasets:
        names = list(_stream(datasets, file, "parquet").features)
        require_fields(wanted, names, str(file.path))
        stream = _stream(datasets, file, "parquet", columns=wanted, batch_size=PARQUET_ROWS)
        yield from column_records(stream, index, first, field, str(file.path), label_field)


def require_fields(wanted: list[str], names: list[str], where: str) -> None:
    """Refuse documents that lack a field.

    Raises:
        DataError: so it is.
    """
    for field in wanted:
        if field not in names:
            known = ", ".join(names) or "none"
            hint = "set data.text_field" if len(wanted) == 1 else "give --text-field, --label-field"
            raise DataError(f"{where}: no field {field!r}; fields: {known}; {hint}")


def column_records(
    stream: Any, index: int, first: int, field: str, where: str, label_field: str | None = None
) -> Iterator[Record]:
    """One record a row of a `datasets` stream in arrow format, from row `first` on."""
    number = 0
    for table in stream.iter(batch_size=_ROWS):
        require_fields(fields_of(field, label_field), table.column_names, where)
        if number + len(table) > first:
            skipped = max(first - number, 0)
            values = _values(table.column(field).slice(skipped))
            labels = _values(table.column(label_field).slice(skipped)) if label_field else []
            labels = labels or [None] * len(values)
            for offset, (value, label) in enumerate(
                zip(values, labels, strict=True), number + skipped
            ):
                text, problem = _checked_text(value, field)
                if isinstance(value, UnicodeDecodeError):
                    problem = "not UTF-8"
                yield Record(index, offset, text, problem, (index, offset + 1), label=label)
        number += len(table)


def _values(column: Any) -> list[Any]:
    """Python values; a string that is not UTF-8 as its exception."""
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        values: list[Any] = []
        for scalar in column:
            try:
                values.append(scalar.as_py())
            except UnicodeDecodeError as error:
                values.append(error)
        return values


def text_records(file: LocalFile, index: int, first: int, piece_bytes: int) -> Iterator[Record]:
    """Pieces of a text file: whole paragraphs up to the first blank line after `piece_bytes`.

    Text without blank lines is cut at a line end after four times as much, a longer line at a
    space. Every piece is a document, so that even one book can be split by hash.
    """
    longest = 4 * piece_bytes
    lines: list[bytes] = []
    start, size = first, 0
    for number, line in local_lines(file, first):
        if not lines:
            start = number
        lines.append(line)
        size += len(line) + 1
        if (size >= piece_bytes and not line.strip()) or size >= longest:
            yield from _piece_records(index, start, b"\n".join(lines), longest, (index, number + 1))
            lines, size = [], 0
    if lines:
        yield from _piece_records(index, start, b"\n".join(lines), longest, (index + 1, 0))


def _piece_records(
    index: int, start: int, raw: bytes, longest: int, after: Cursor
) -> Iterator[Record]:
    try:
        text = raw.decode("utf-8").strip("\n")
    except UnicodeDecodeError as error:
        number = start + raw.count(b"\n", 0, error.start)
        yield Record(index, number, None, "not UTF-8", after)
        return
    if "\0" in text:
        yield Record(index, start, None, "not text (a NUL character)", after)
        return
    pieces = list(_cut(text, longest)) if len(text) > 2 * longest else [text]
    for piece in pieces[:-1]:
        yield Record(index, start, piece, None, None)
    yield Record(index, start, pieces[-1], None, after)


def _cut(text: str, longest: int) -> Iterator[str]:
    """Cut a very long line at the first white space after `longest` characters."""
    space = re.compile(r"\s")
    position = 0
    while position < len(text):
        match = space.search(text, position + longest, position + 2 * longest)
        end = match.end() if match else min(position + 2 * longest, len(text))
        yield text[position:end]
        position = end
