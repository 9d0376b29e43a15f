"""Texts with a label, 0 or 1: a data set of the hub, or one CSV, JSON or parquet file. No torch."""

from __future__ import annotations

import csv
import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np

from budgetsweep.errors import DataError
from trainer.data.sources import Record, Source
from trainer.data.sources.hub import HubSource
from trainer.data.sources.local import LocalSource
from trainer.data.sources.local_files import COMPRESSIONS, kind_of, local_file
from trainer.data.sources.records import local_lines

YELP = "yelp_polarity"
YELP_ON_HUB = "hub:fancyzhx/yelp_polarity"
SPLIT = "test"
"""Split of a hub data set that is read."""
EXPECTED = (
    f"{YELP}, hub:owner/name[:config], or a .csv, .jsonl, .json (each also .gz, .zst, .xz or .bz2) "
    "or .parquet file"
)
LABELS = "0 (negative) and 1 (positive), or 1 and 2"


@dataclass(frozen=True)
class LabelledTexts:
    """A data set for classification, in the order of its file."""

    texts: list[str]
    labels: list[int]
    """0 = negative, 1 = positive; both occur."""
    description: str
    """What was read, for people; of a hub data set with its commit."""

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def checksum(self) -> str:
        """SHA-256 over labels and texts in order: equal data in any kind of file is equal."""
        digest = hashlib.sha256()
        for text, label in zip(self.texts, self.labels, strict=True):
            raw = text.encode()
            digest.update(f"{label} {len(raw)}\n".encode() + raw)
        return digest.hexdigest()


def shuffled(n: int, seed: int) -> list[int]:
    """The numbers 0 to n - 1 in the order of `datasets.Dataset.shuffle(seed=seed)`.

    `permutation` of NumPy's PCG64 generator: the same on every machine.
    """
    return np.random.default_rng(seed).permutation(n).tolist()


def read_labelled(
    source: str, text_field: str = "text", label_field: str = "label"
) -> LabelledTexts:
    """Read a data set whole.

    Labels are 0 and 1, or, where exactly these occur, 1 and 2 as in the original Yelp files. A CSV
    file has a header with both fields, or is one of the original files: no header, two columns,
    the label first. One bad record refuses the file: an accuracy on what was left would be
    another one.

    Args:
        source: `yelp_polarity`, `hub:owner/name[:config]` (both: the split `test`), or a file.

    Raises:
        DataError: no such source, damaged, empty, no such fields, a record (named by its line)
            without text or with another label, only one label, or no network.
    """
    data = _open(source, text_field, label_field)
    texts: list[str] = []
    labels: list[int] = []
    for record in data.records():
        label = _number(record.label)
        if record.text is None or label is None:
            problem = record.problem or f"label {_shown(record.label)}; expected {LABELS}"
            raise DataError(f"{data.place(record.file, record.record)}: {problem}")
        texts.append(record.text)
        labels.append(label)
    if not texts:
        raise DataError(f"{source}: empty; expected records with {text_field} and {label_field}")
    found = sorted(set(labels))
    if len(found) == 1:
        raise DataError(
            f"{source}: every {label_field} is {found[0]}; expected texts of both classes, {LABELS}"
        )
    if found not in ([0, 1], [1, 2]):
        raise DataError(f"{source}: labels {', '.join(map(str, found))} occur; expected {LABELS}")
    commit = f" at {data.revision}" if data.revision else ""
    return LabelledTexts(texts, [label - found[0] for label in labels], f"{source}{commit}")


def _open(name: str, text_field: str, label_field: str) -> Source | LabelledCsv:
    if name == YELP or HubSource.claims(name):
        full = YELP_ON_HUB if name == YELP else name
        source = HubSource(full, text_field, split=SPLIT, label_field=label_field)
        source.name = name
        return source.open()
    path = Path(name).expanduser()
    if not path.is_file():
        what = "a folder" if path.is_dir() else "no such file"
        raise DataError(f"{name}: {what}; expected {EXPECTED}")
    if _is_csv(path):
        return LabelledCsv(path, text_field, label_field)
    kind = kind_of(path)
    if kind not in ("json", "parquet"):
        raise DataError(f"{name}: what kind of file is this? Expected {EXPECTED}")
    return LocalSource(name, text_field).open_files([local_file(path, kind)], label_field)


def _is_csv(path: Path) -> bool:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSIONS:
        suffixes.pop()
    return suffixes[-1:] == [".csv"]


def _number(label: Any) -> int | None:
    """0, 1 or 2 as a number or its digit; None: something else."""
    if isinstance(label, str):
        label = {"0": 0, "1": 1, "2": 2}.get(label.strip())
    if isinstance(label, bool) or label not in (0, 1, 2):
        return None
    return int(label)


def _shown(label: Any) -> str:
    text = repr(label)
    return text if len(text) <= 40 else f"{text[:40]}..."


@final
class LabelledCsv:
    """One CSV file with a column for the text and one for the label."""

    revision = None

    def __init__(self, path: Path, text_field: str, label_field: str) -> None:
        self.file = local_file(path, "text")
        self.fields = (text_field, label_field)

    def place(self, file: int, record: int) -> str:
        """File and line."""
        del file
        return f"{self.file.path}:{record + 1}"

    def records(self) -> Iterator[Record]:
        """One record a row; the header is none."""
        rows = self._rows()
        first = next(rows, None)
        if first is None:
            return
        names = [name.strip() for name in first[1]]
        if set(self.fields) <= set(names):
            text_at, label_at = (names.index(field) for field in self.fields)
        elif len(names) == 2 and _number(names[0]) is not None:
            text_at, label_at = 1, 0
            rows = itertools.chain([first], rows)
        else:
            expected = " and ".join(map(repr, self.fields))
            raise DataError(
                f"{self.place(0, first[0])}: columns {_shown(', '.join(names))}; expected a header "
                f"with {expected}, or two columns without one: a label, then the text"
            )
        for line, row in rows:
            if len(row) != len(names):
                raise DataError(
                    f"{self.place(0, line)}: {len(row)} columns, expected {len(names)} as in the "
                    "first line"
                )
            yield Record(0, line, row[text_at], None, (0, line + 1), label=row[label_at])

    def _rows(self) -> Iterator[tuple[int, list[str]]]:
        """(number of its first line, columns) of each row that is not blank."""
        reader = csv.reader(self._lines(), strict=True)
        line = 0
        try:
            for row in reader:
                if row:
                    yield line, row
                line = reader.line_num
        except csv.Error as error:
            raise DataError(f"{self.place(0, line)}: not CSV ({error})") from error

    def _lines(self) -> Iterator[str]:
        for number, line in enumerate(local_lines(self.file)):
            try:
                yield line.decode("utf-8") + "\n"
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{self.place(0, number)}: not UTF-8 (byte {error.start + 1} of the line)"
                ) from error
