"""Documents of a source, in a fixed order, each with the place to go on from. No torch.

A source is one of: `c4`, `hub:owner/name[:config]`, `demo`, or a path (a file, a folder or a glob
pattern of text, JSON lines, JSON, CSV or parquet files). `datasets` reads them, streamed. The
course's tokens.npz holds tokens, not documents: see `trainer.data.sources.course_npz`.
"""

from __future__ import annotations

import os
import sysconfig
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, final

from budgetsweep.errors import DataError
from trainer.data.sources.csv_rows import csv_file_columns, csv_file_records, mixed_columns
from trainer.data.sources.local_files import FoundFiles, find_files, local_identity, piece_bytes
from trainer.data.sources.records import Cursor, Record, json_records, parquet_records, text_records

C4 = "hub:allenai/c4:en"
_DEMO_LEFT_OUT = frozenset(
    {"__pycache__", "dist-packages", "ensurepip", "idlelib", "lib2to3", "site-packages"}
    | {"test", "tests", "turtledemo"}
)


class Corpus(ABC):
    """Documents in a fixed order. Reading twice from the same place gives the same documents."""

    description: str
    """A few words for people."""
    revision: str | None = None
    """Version of a source that can change elsewhere (a commit of the hub)."""
    n_bytes: int | None = None
    """About how many bytes of text there are; None: not known."""
    pairs: bool = False
    """Each document is the target of a pair, with its source beside it."""

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """Plain data that changes whenever the documents may have changed."""

    @abstractmethod
    def records(self, start: Cursor = (0, 0)) -> Iterator[Record]:
        """Documents and bad records from a place that an earlier record gave as `next`.

        Raises:
            DataError: a file is damaged, or the network is gone.
        """

    @abstractmethod
    def place(self, file: int, record: int) -> str:
        """Name of a record for people, such as `notes.jsonl:17`."""


@final
class LocalCorpus(Corpus):
    """Text, JSON lines, JSON, CSV and parquet files, in the order of their paths.

    Raises:
        DataError: a CSV file has not the columns that are needed.
    """

    def __init__(
        self, source: str, found: FoundFiles, text_field: str, label_field: str | None = None
    ) -> None:
        self.files = found.files
        self.text_field = text_field
        self.label_field = label_field
        self.n_bytes = sum(file.text_bytes for file in self.files)
        self.description = source + found.note
        self._piece_bytes = piece_bytes(sum(f.size for f in self.files if f.kind == "text"))
        tables = [file for file in self.files if file.kind == "csv"]
        pairs = [csv_file_columns(file, text_field).pair is not None for file in tables]
        self.pairs = any(pairs)
        if self.pairs and not all(pairs):
            raise mixed_columns(str(tables[pairs.index(False)].path))

    def identity(self) -> dict[str, Any]:
        """Path, size and time of change of each file."""
        return {"files": local_identity(self.files), "text_field": self.text_field}

    def records(self, start: Cursor = (0, 0)) -> Iterator[Record]:
        """Documents file by file."""
        for index in range(start[0], len(self.files)):
            first = start[1] if index == start[0] else 0
            file = self.files[index]
            if file.kind == "text":
                yield from text_records(file, index, first, self._piece_bytes)
            elif file.kind == "json":
                yield from json_records(file, index, first, self.text_field, self.label_field)
            elif file.kind == "csv":
                yield from csv_file_records(file, index, first, self.text_field, self.pairs)
            else:
                yield from parquet_records(file, index, first, self.text_field, self.label_field)

    def place(self, file: int, record: int) -> str:
        """File and line, or file and row of a parquet file."""
        if self.files[file].kind == "parquet":
            return f"{self.files[file].path}: row {record + 1}"
        return f"{self.files[file].path}:{record + 1}"


@final
class DemoCorpus(Corpus):
    """Python's own standard library: each module is a document."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = Path(sysconfig.get_path("stdlib")) if root is None else root
        self.description = "Python's standard library"
        self.paths = sorted(
            self._modules(), key=lambda path: path.relative_to(self.root).as_posix()
        )
        self._sizes = [path.stat().st_size for path in self.paths]
        self.n_bytes = sum(self._sizes)
        if not self.paths:
            raise DataError(
                f"demo: no Python source files under {self.root} (a standard library in a zip "
                "archive or without sources); give a path of text files instead"
            )

    def _modules(self) -> Iterator[Path]:
        for folder, inner, names in os.walk(self.root):
            inner[:] = [name for name in inner if name not in _DEMO_LEFT_OUT]
            for name in names:
                if name.endswith(".py") and not name.startswith("test_"):
                    yield Path(folder, name)

    def identity(self) -> dict[str, Any]:
        """Names and sizes: the same library in another place is the same text."""
        names = [p.relative_to(self.root).as_posix() for p in self.paths]
        return {"demo": [list(pair) for pair in zip(names, self._sizes, strict=True)]}

    def records(self, start: Cursor = (0, 0)) -> Iterator[Record]:
        """One document a module; line ends as in the file."""
        for index in range(start[0], len(self.paths)):
            try:
                text, problem = self.paths[index].read_bytes().decode("utf-8"), None
            except UnicodeDecodeError:
                text, problem = None, "not UTF-8"
            except OSError as error:
                text, problem = None, f"cannot be read ({error.strerror})"
            yield Record(index, 0, text, problem, (index + 1, 0))

    def place(self, file: int, record: int) -> str:
        """Path of the module, which is one record."""
        return f"{self.paths[file]}:{record + 1}"


def is_hub(source: str) -> bool:
    """Whether a source is read from the Hugging Face hub."""
    return source == "c4" or source.startswith("hub:")


def hub_name(source: str) -> tuple[str, str | None]:
    """Repository and configuration of `c4` or `hub:owner/name[:config]`.

    Raises:
        DataError: it does not have that form.
    """
    repo, _, config = (C4 if source == "c4" else source).removeprefix("hub:").partition(":")
    if not repo or repo.count("/") > 1 or repo.startswith("/") or repo.endswith("/"):
        raise DataError(f"{source}: expected hub:owner/name or hub:owner/name:config, such as {C4}")
    return repo, config or None


def source_identity(source: str, text_field: str) -> dict[str, Any]:
    """Plain data that identifies the documents of a source, without a network.

    Raises:
        DataError: there is no such file.
    """
    if is_hub(source):
        repo, config = hub_name(source)
        return {"hub": repo, "config": config, "text_field": text_field}
    if source == "demo":
        return DemoCorpus().identity()
    return {"files": local_identity(find_files(source).files), "text_field": text_field}


def open_corpus(source: str, text_field: str = "text", revision: str | None = None) -> Corpus:
    """The documents of a source.

    Args:
        source: `c4`, `hub:…`, `demo` or a path.
        text_field: field of a document that holds its text.
        revision: commit of a hub data set to stay with; None: the newest.

    Raises:
        DataError: no such file, nothing in it, no network, or no such field.
    """
    if is_hub(source):
        from trainer.data.sources.hub import HubCorpus

        return HubCorpus(source, *hub_name(source), text_field, revision)
    if source == "demo":
        return DemoCorpus()
    return LocalCorpus(source, find_files(source), text_field)
