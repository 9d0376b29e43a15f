"""CSV files that anybody wrote: what is wrong with one is one line that names the place."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from budgetsweep.errors import DataError
from studies.csv_files import csv_rows, number, read_text

ANY = {"wanted": "a CSV file", "expected": "expected columns a, b"}


def test_gzip_byte_order_mark_and_spaces(tmp_path: Path) -> None:
    path = tmp_path / "a.csv.gz"
    path.write_bytes(gzip.compress("\ufeffa, b \r\n1,2\r\n\r\n3\r\n".encode()))
    head, rows = csv_rows(path, read_text(path, **ANY))
    assert head == ["a", "b"]
    assert list(rows) == [(2, {"a": "1", "b": "2"}), (4, {"a": "3", "b": None})]
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(DataError, match="damaged gzip file"):
        read_text(path, **ANY)


def test_files_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    with pytest.raises(DataError, match=r"a\.csv: no such file; expected a CSV file"):
        read_text(path, **ANY)
    with pytest.raises(DataError, match="cannot be read"):
        read_text(tmp_path, **ANY)
    for content, message in (
        (b"\xff\xfe", "not UTF-8 text"), (b" \n", "the file is empty; expected columns a, b"),
    ):  # fmt: skip
        path.write_bytes(content)
        with pytest.raises(DataError, match=message):
            read_text(path, **ANY)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2,3\n", "a.csv, line 2: more cells than columns"),
        ('a,b\n1,"2\n', "a.csv, line 2: not CSV"),
        ('"a,b\n', "a.csv, line 1: not CSV"),
    ],
)
def test_rows_that_are_no_csv(text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        list(csv_rows(Path("a.csv"), text)[1])


def test_numbers() -> None:
    assert [number(cell, "a", "here") for cell in (None, " ", "1e3", 2)] == [None, None, 1e3, 2.0]
    assert number("inf", "a", "here") == float("inf")
    for cell, shown in (("high", "'high'"), ([5], r"\[5\]"), (True, "True")):
        with pytest.raises(DataError, match=f"^here: a = {shown}; expected a number$"):
            number(cell, "a", "here")
