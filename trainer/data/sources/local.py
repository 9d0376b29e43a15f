"""Local files of text, JSON lines, JSON, CSV and parquet as a source. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Self, final

from budgetsweep.errors import DataError
from trainer.data.sources import Cursor, Record, Source
from trainer.data.sources.csv_rows import (
    LONGEST_ROW_BYTES,
    Columns,
    csv_columns,
    csv_records,
)
from trainer.data.sources.local_files import LocalFile, find_files
from trainer.data.sources.records import json_records, local_lines, parquet_records, text_records


@final
class LocalSource(Source):
    """A file, or the files of a folder or glob pattern in the order of their paths."""

    claims_before = 2

    @classmethod
    def claims(cls, name: str) -> bool:
        """What no other source claims."""
        del name
        return True

    def open(self) -> Self:
        """Find the files."""
        files, n_left_out = find_files(self.name)
        if len(files) > 1 or n_left_out:
            left_out = f"; {n_left_out} of other splits left out" if n_left_out else ""
            self.description += f" ({len(files)} files{left_out})"
        return self.open_files(files)

    def open_files(self, files: list[LocalFile], label_field: str | None = None) -> Self:
        """Read these files; with a label beside each text, if one is asked for.

        Raises:
            DataError: a CSV file has not the columns that are needed.
        """
        self.files = files
        self.label_field = label_field
        self.n_bytes = sum(file.text_bytes for file in self.files)
        # About 256 pieces of a short text, so that a split by hash can be fair; 4096 bytes, about a
        # thousand GPT-2 tokens, where it is long.
        n_bytes = sum(f.size for f in self.files if f.kind == "text")
        self._piece_bytes = min(max(n_bytes // 256, 256), 4096)
        tables = [file for file in self.files if file.kind == "csv"]
        pairs = [self._columns(file).pair is not None for file in tables]
        self.pairs = any(pairs)
        if self.pairs and not all(pairs):
            raise DataError(
                f"{tables[pairs.index(False)].path}: some files of this source have the columns "
                "headline, title, text, others not; give one kind only"
            )
        return self

    def _columns(self, file: LocalFile) -> Columns:
        return csv_columns(local_lines(file, LONGEST_ROW_BYTES), self.text_field, str(file.path))

    def identity(self) -> dict[str, Any]:
        """Path, size and time of change of each file."""
        files = [[str(f.path), f.size, f.mtime_ns] for f in find_files(self.name)[0]]
        return {"files": files, "text_field": self.text_field}

    def records(self, start: Cursor = (0, 0)) -> Iterator[Record]:
        """Documents file by file."""
        field, label_field = self.text_field, self.label_field
        for index in range(start[0], len(self.files)):
            first = start[1] if index == start[0] else 0
            file = self.files[index]
            where = str(file.path)
            if file.kind == "text":
                yield from text_records(file, index, first, self._piece_bytes)
            elif file.kind == "json":
                yield from json_records(local_lines(file), where, index, first, field, label_field)
            elif file.kind == "parquet":
                yield from parquet_records(file, index, first, field, label_field)
            else:
                lines = local_lines(file, LONGEST_ROW_BYTES)
                yield from csv_records(lines, where, index, first, field)

    def place(self, file: int, record: int) -> str:
        """File and line, or file and row of a parquet file."""
        if self.files[file].kind == "parquet":
            return f"{self.files[file].path}: row {record + 1}"
        return f"{self.files[file].path}:{record + 1}"
