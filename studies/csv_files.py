"""CSV files that anybody wrote; each mistake is one line with its place. No torch."""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from budgetsweep.errors import DataError

LARGEST_BYTES = 1 << 28


def read_text(path: Path, *, wanted: str, expected: str) -> str:
    """The text of a file, plain or gzipped.

    Messages say what is `wanted` in a few words, and end with what is `expected` in it.

    Raises:
        DataError: the file is missing, too large, damaged, not UTF-8 or empty.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(LARGEST_BYTES + 1)
        if raw[:2] == b"\x1f\x8b":
            with gzip.open(io.BytesIO(raw)) as unpacked:
                raw = unpacked.read(LARGEST_BYTES + 1)
        if len(raw) > LARGEST_BYTES:
            raise DataError(f"{path}: larger than {LARGEST_BYTES >> 20} MiB; expected {wanted}")
        text = raw.decode("utf-8-sig")
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; expected {wanted}") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: damaged gzip file ({error})") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text (byte {error.start})") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    if not text.strip():
        raise DataError(f"{path}: the file is empty; {expected}")
    return text


def csv_rows(path: Path, text: str) -> tuple[list[str], Iterator[tuple[int, dict[str, Any]]]]:
    """Names of the columns, and the rows by their line; a cell that is missing is None.

    Raises:
        DataError: not CSV, or (while the rows are read) a row with more cells than columns.
    """
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)

    def not_csv(error: csv.Error) -> DataError:
        return DataError(f"{path}, line {max(1, reader.reader.line_num)}: not CSV ({error})")

    def rows() -> Iterator[tuple[int, dict[str, Any]]]:
        try:
            for row in reader:
                if None in row:
                    raise DataError(f"{path}, line {reader.line_num}: more cells than columns")
                yield reader.line_num, row
        except csv.Error as error:
            raise not_csv(error) from error

    try:
        columns = [name.strip() for name in reader.fieldnames or []]
    except csv.Error as error:
        raise not_csv(error) from error
    reader.fieldnames = columns
    return columns, rows()


def number(value: Any, column: str, where: str) -> float | None:
    """A number, which may be NaN or infinite; None where the cell is empty.

    Raises:
        DataError: something else; the message begins with `where`.
    """
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    try:
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise ValueError
        return float(value)
    except (ValueError, OverflowError) as error:
        shown = repr(value) if len(repr(value)) <= 40 else repr(value)[:37] + "..."
        raise DataError(f"{where}: {column} = {shown}; expected a number") from error
