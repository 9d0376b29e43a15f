"""Records of CSV files, row by row: bad rows are passed over, memory is bounded. No torch.

Python's csv module parses each row (RFC 4180, strictly) from lines that are decoded here. A quote
too many or too few would join rows to one; so after a row that cannot be parsed, reading goes on
at the line after its first. Lines up to the next row that can be trusted belong to the bad one.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from budgetsweep.errors import DataError
from trainer.data.sources import Record, wikihow

LONGEST_ROW_BYTES = 4 << 20
"""A longer row is bad: WikiHow's longest articles are some 100 kB (*assumption*)."""

_PROBLEMS = {
    "unexpected end of data": "a quoted field is not closed",
    "',' expected after '\"'": "text after a closing quote",
    "new-line character": "a carriage return outside quotes",
}
_FIELD = r'(?:"[^"]*+(?:""[^"]*+)*+"|[^",\r\n]*+)'
_WELL_FORMED = re.compile(rf"{_FIELD}(?:,{_FIELD})*+\n")


class _TooLong(Exception):
    """A row is longer than `LONGEST_ROW_BYTES`."""


@dataclass(frozen=True)
class Columns:
    """Which columns of a CSV file are read."""

    n: int
    """Fields in each row."""
    text: int
    pair: tuple[int, int] | None = None
    """Headline and title beside the text, of a file of pairs."""


@dataclass(frozen=True, slots=True)
class _Row:
    """Fields, or what is wrong."""

    line: int
    """First line, from 0."""
    after: int
    """Line after the last."""
    fields: list[str]
    raw: str
    """As it stands in the file; for looking twice at a doubtful row."""
    problem: str | None = None
    broken: bool = False
    """It is not sure where the row ends; its second line comes next."""
    wrong_number: bool = False
    """Not as many fields as columns."""


def csv_columns(lines: Iterable[bytes], field: str, where: str) -> Columns:
    """Columns of a CSV file by its header.

    Headline, title and text make a file of pairs, where the text field is `text`.

    Raises:
        DataError: no header, or not the columns that are needed.
    """
    return _header(_Lines(lines), field, where)


def csv_records(
    lines: Iterable[bytes], where: str, index: int, first: int, field: str
) -> Iterator[Record]:
    """One record a row; a row's number is that of its first line, counted from 0.

    Args:
        lines: all lines of the file, without their ends, longer ones than `LONGEST_ROW_BYTES` cut
            after as much and a byte more.
        first: line to begin at, `next` of an earlier record; 0: after the header.

    Raises:
        DataError: not the columns that are expected.
    """
    source = _Lines(lines)
    columns = _header(source, field, where)
    while source.number < first and source.take() is not None:
        pass
    for row in _rows(source, columns.n):
        yield _record(row, index, columns, field)


class _Lines:
    """Lines with their number; some can be given back."""

    def __init__(self, lines: Iterable[bytes]) -> None:
        self._lines = iter(lines)
        self._back: list[bytes] = []
        self.number = 0
        """Of the line that comes next, from 0."""

    def take(self) -> bytes | None:
        """The next line; None: the end."""
        line = self._back.pop() if self._back else next(self._lines, None)
        if line is not None:
            self.number += 1
        return line

    def give_back(self, lines: list[bytes]) -> None:
        """Lines that were taken last will come again."""
        self._back.extend(reversed(lines))
        self.number -= len(lines)


def _header(lines: _Lines, field: str, where: str) -> Columns:
    first = lines.take()
    expected = f"expected headline, title and text (pairs), or a column {field!r} (data.text_field)"
    if first is None:
        raise DataError(f"{where}: empty; {expected}")
    lines.give_back([first])
    row = _parse(lines)
    if row.problem:
        raise DataError(f"{where}: the header cannot be read ({row.problem}); {expected}")
    names = [name.strip().casefold() for name in row.fields]
    if field == "text" and all(name in names for name in wikihow.COLUMNS):
        headline, title, text = map(names.index, wikihow.COLUMNS)
        return Columns(len(names), text, (headline, title))
    if field.casefold() in names:
        return Columns(len(names), names.index(field.casefold()))
    known = ", ".join(repr(name.strip()) for name in row.fields)
    raise DataError(f"{where}: columns {known[:200]}; {expected}")


def _rows(lines: _Lines, n: int) -> Iterator[_Row]:
    """Rows with what is wrong with them; a broken one with all lines that may belong to it."""
    row = _next_row(lines, n)
    while row is not None:
        if not row.broken:
            yield row
            row = _next_row(lines, n)
            continue
        start, problem = row.line, row.problem
        row = _next_row(lines, n)
        while row is not None and not _is_trusted(row):
            row = _next_row(lines, n)
        after = lines.number if row is None else row.line
        if after > start + 1:
            problem = f"{problem}; left out to line {after}"
        yield _Row(start, after, [], "", problem)


def _next_row(lines: _Lines, n: int) -> _Row | None:
    """The next row that is not blank; None: the end."""
    while (line := lines.take()) is not None:
        if line and not line.isspace():
            lines.give_back([line])
            return _parse(lines, n)
    return None


def _is_trusted(row: _Row) -> bool:
    """Whether what follows a broken row is a row again, and not a line of the broken one's text.

    Prose may have as many commas as a row, but with spaces after them.
    """
    if row.broken or row.wrong_number or not _WELL_FORMED.fullmatch(row.raw):
        return False
    quoted = row.raw.startswith('"') or ',"' in row.raw
    return quoted or not any(field.startswith(" ") for field in row.fields)


@contextmanager
def _long_fields() -> Iterator[None]:
    """Raise the library's limit on a field (128 kB), which is one for the whole process."""
    before = csv.field_size_limit(LONGEST_ROW_BYTES)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _parse(lines: _Lines, n: int | None = None) -> _Row:
    """The row that begins at the next line; n: how many fields it has to have."""
    start, taken, raw, problems = lines.number, [], [], []

    def decoded() -> Iterator[str]:
        size = 0
        while (line := lines.take()) is not None:
            taken.append(line)
            size += len(line) + 1
            if size > LONGEST_ROW_BYTES:
                raise _TooLong
            if b"\0" in line:
                problems.append("not text (a NUL character)")
                line = line.replace(b"\0", b"?")
            try:
                text = line.decode("utf-8")
            except UnicodeDecodeError:
                problems.append("not UTF-8")
                text = line.decode("utf-8", "replace")
            raw.append(text + "\n")
            yield raw[-1]

    wrong_number = False
    try:
        with _long_fields():
            fields = next(csv.reader(decoded(), strict=True))
    except _TooLong:
        broken = f"longer than {LONGEST_ROW_BYTES >> 20} MiB (a quoted field is not closed?)"
    except csv.Error as error:
        broken = next((said for start, said in _PROBLEMS.items() if str(error).startswith(start)),
                      str(error))  # fmt: skip
    else:
        wrong_number = n is not None and len(fields) != n
        if wrong_number:
            problems.append(f"{len(fields)} fields, expected {n}")
        if not (wrong_number and len(taken) > 1):
            problem = problems[0] if problems else None
            return _Row(start, lines.number, fields, "".join(raw), problem, False, wrong_number)
        broken = problems[-1]  # several lines: it may have swallowed other rows
    lines.give_back(taken[1:])
    return _Row(start, lines.number, [], "", broken, True)


def _record(row: _Row, index: int, columns: Columns, field: str) -> Record:
    after = (index, row.after)
    if row.problem is not None:
        return Record(index, row.line, None, row.problem, after)
    text = row.fields[columns.text]
    if not text or text.isspace():
        return Record(index, row.line, None, f"no text in column {field!r}", after)
    if columns.pair is None:
        return Record(index, row.line, text, None, after)
    headline, title = (row.fields[i] for i in columns.pair)
    if not title or title.isspace():
        return Record(index, row.line, None, "no text in column 'title'", after)
    source, target = wikihow.make_pair(headline, title, text) or ("", "")
    return Record(index, row.line, target, None, after, source=source)
