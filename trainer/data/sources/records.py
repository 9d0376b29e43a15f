"""Records of one local file: text, JSON lines, JSON and parquet. No torch.

Lines of text and JSON are split and decoded here, because table readers give up a file at the first
bad line, and read numbers and text in one field as something else.
"""

from __future__ import annotations

import codecs
import contextlib
import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

from budgetsweep.errors import DataError
from trainer.data.sources import Cursor, Record
from trainer.data.sources.local_files import LocalFile, decompressed

PARQUET_ROWS = 512
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


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


def local_lines(file: LocalFile, longest: int | None = None) -> Iterator[bytes]:
    """Lines of a local file, compressed or not, without their ends.

    A line with more than `longest` bytes may lose its end, but stays longer than that.

    Raises:
        DataError: the file cannot be read, is damaged or cut, or UTF-16.
    """
    with named_errors(str(file.path)):
        lines = lines_of(decompressed(file.path), longest)
        for first in lines:
            if first.startswith(_UTF16):
                raise DataError(f"{file.path}: UTF-16 text; save it as UTF-8")
            yield first.removeprefix(codecs.BOM_UTF8)
            yield from lines


def lines_of(pieces: Iterable[bytes], longest: int | None = None) -> Iterator[bytes]:
    """Lines without their ends; `longest` as in `local_lines`."""
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


def json_records(
    lines: Iterator[bytes], where: str, index: int, first: int, field: str, label_field: str | None
) -> Iterator[Record]:
    """One record a line, blank lines passed over; the file may also be one JSON list."""
    for number, line in enumerate(lines):
        if number == 0 and line.lstrip().startswith(b"["):
            with named_errors(where):
                values = json.loads(b"\n".join([line, *lines]))
            for row, value in enumerate(values):  # there is nowhere to go on from but its end
                after = (index + 1, 0) if row + 1 == len(values) else None
                yield _json_record(value, index, row, after, field, label_field)
            return
        if number >= first and line and not line.isspace():
            after = (index, number + 1)
            try:
                value = json.loads(line.decode("utf-8"))
            except (ValueError, RecursionError) as error:
                yield Record(index, number, None, _json_problem(error), after)
            else:
                yield _json_record(value, index, number, after, field, label_field)


def _json_problem(error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        return "not UTF-8"
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON ({error.msg} at column {error.colno})"
    return "not JSON"


def _json_record(
    value: Any, index: int, number: int, after: Cursor | None, field: str, label_field: str | None
) -> Record:
    if not isinstance(value, dict):
        problem = f"not a JSON object but {_json_kind(value)}"
        return Record(index, number, None, problem, after)
    for name in fields_of(field, label_field):
        if name not in value:
            names = ", ".join(sorted(value)) or "none"
            problem = f"no field {name!r}; fields: {names[:200]}"
            return Record(index, number, None, problem, after)
    label = value[label_field] if label_field else None
    return _record(value[field], index, number, after, field, label)


def _record(
    text: Any, index: int, number: int, after: Cursor | None, field: str, label: Any
) -> Record:
    """The record of what stands in the field of the text."""
    problem = f"field {field!r} is {_json_kind(text)}, not text"
    if isinstance(text, str):
        try:
            text.encode()
            return Record(index, number, text, None, after, label=label)
        except UnicodeEncodeError as error:
            problem = f"half of a surrogate pair (character {error.start}), no Unicode text"
    return Record(index, number, None, problem, after, label=label)


def _json_kind(value: Any) -> str:
    names = {type(None): "null", bool: "true/false", int: "a number", float: "a number"}
    names |= {list: "a list", dict: "an object", str: "text"}
    return names.get(type(value), f"a {type(value).__name__}")


def fields_of(text_field: str, label_field: str | None) -> list[str]:
    """The fields that are wanted of each document."""
    return [text_field] if label_field is None else [text_field, label_field]


def parquet_records(
    file: LocalFile, index: int, first: int, field: str, label_field: str | None
) -> Iterator[Record]:
    """One record a row of a parquet file."""
    from pyarrow.parquet import ParquetFile

    wanted = fields_of(field, label_field)
    with named_errors(str(file.path)), ParquetFile(file.path) as table:
        require_fields(wanted, table.schema_arrow.names, str(file.path))
        tables = table.iter_batches(PARQUET_ROWS, columns=wanted)
        yield from column_records(tables, index, first, field, label_field)


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
    tables: Iterable[Any], index: int, first: int, field: str, label_field: str | None
) -> Iterator[Record]:
    """One record a row of tables of pyarrow, from row `first` on."""
    number = 0
    for table in tables:
        skipped = max(first - number, 0)
        texts = table.column(field).slice(skipped).to_pylist()
        labels: list[Any] = [None] * len(texts)
        if label_field:
            labels = table.column(label_field).slice(skipped).to_pylist()
        for row, (text, label) in enumerate(zip(texts, labels, strict=True), number + skipped):
            yield _record(text, index, row, (index, row + 1), field, label)
        number += table.num_rows


def text_records(file: LocalFile, index: int, first: int, piece_bytes: int) -> Iterator[Record]:
    """Pieces of a text file: whole paragraphs up to the first blank line after `piece_bytes`.

    Text without blank lines is cut at a line end after four times as much, a longer line at a
    space. Every piece is a document, so that even one book can be split by hash.
    """
    longest = 4 * piece_bytes
    lines: list[bytes] = []
    start, size = first, 0
    for number, line in enumerate(local_lines(file)):
        if number < first:
            continue
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
