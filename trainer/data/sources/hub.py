"""Data sets of the Hugging Face hub, streamed through `datasets`. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Self, final

from budgetsweep.errors import DataError
from trainer.data.sources import Cursor, Record, Source
from trainer.data.sources.csv_rows import LONGEST_ROW_BYTES, csv_columns, csv_records
from trainer.data.sources.records import (
    PARQUET_ROWS,
    column_records,
    datasets_library,
    fields_of,
    json_line_record,
    remote_lines,
    require_fields,
)
from trainer.data.time_limit import answer_within

REQUEST_SECONDS = 10.0
"""Time limit of the first request to the hub."""
REACH_SECONDS = 18.0
"""The same, name look-up included, which knows no limit of its own."""


C4 = "hub:allenai/c4:en"


@final
class HubSource(Source):
    """One split of a data set, file by file, at one commit, whose name is in `revision`."""

    forms = ("c4", "hub:owner/name")
    has_end = False

    def __init__(
        self,
        name: str,
        text_field: str = "text",
        revision: str | None = None,
        *,
        split: str = "train",
        label_field: str | None = None,
    ) -> None:
        """Take `c4` or `hub:owner/name[:config]`.

        Args:
            revision: commit; None: the newest.
            label_field: field with a label for each text; None: none is wanted.

        Raises:
            DataError: the name does not have that form.
        """
        super().__init__(name, text_field, revision)
        self.split, self.label_field = split, label_field
        full = C4 if name == "c4" else name
        repo, _, config = full.removeprefix("hub:").partition(":")
        if not repo or repo.count("/") > 1 or repo.startswith("/") or repo.endswith("/"):
            raise DataError(
                f"{name}: expected hub:owner/name or hub:owner/name:config, such as {C4}"
            )
        self.repo, self.config = repo, config or None
        self.description = name if name != "c4" else f"c4 ({self.repo}, {self.config})"

    @classmethod
    def claims(cls, name: str) -> bool:
        """`c4`, and what begins with `hub:`."""
        return name == "c4" or name.startswith("hub:")

    def short_name(self) -> str:
        """Repository and configuration."""
        return f"{self.repo}-{self.config}" if self.config else self.repo

    def identity(self) -> dict[str, Any]:
        """Repository, configuration and field; the commit is pinned in the manifest."""
        return {"hub": self.repo, "config": self.config, "text_field": self.text_field}

    def open(self) -> Self:
        """Ask the hub which files there are.

        Raises:
            DataError: no network, no such data set, configuration, split or field.
        """
        with _hub_errors(self.name, self.split):
            self.revision = answer_within(REACH_SECONDS, lambda: _commit(self.repo, self.revision))
        wanted = fields_of(self.text_field, self.label_field)
        with datasets_library() as datasets, _hub_errors(self.name, self.split):
            at = {"path": self.repo, "name": self.config, "revision": self.revision}
            loader = datasets.load_dataset_builder(**at)
            names = list(loader.info.features or {})
            if hasattr(loader.config, "columns") and set(wanted) <= set(names):
                # Parquet: fetch these columns only, in small batches.
                loader = datasets.load_dataset_builder(
                    **at, columns=wanted, batch_size=PARQUET_ROWS
                )
            self._loader = loader
            files = loader.config.data_files or {}
            self._urls = [str(url) for url in files.get(self.split, [])]
            if _is_csv(loader) and self._urls and self.label_field is None:
                self.pairs = self._has_pairs()
        if names:
            require_fields(wanted, names, self.name)
        # Lines of JSON are read one by one, as local ones are: a bad one is no reason to stop.
        self._by_line = _is_json(loader) and loader.config.field is None
        return self

    def records(self, start: Cursor = (0, 0)) -> Iterator[Record]:
        """Records file by file; a file before `start` is not fetched."""
        with datasets_library(), _hub_errors(self.name, self.split, midway=True):
            if self.pairs:
                yield from self._pair_records(start)
            elif self._by_line and self._urls:
                yield from self._line_records(start)
            else:
                yield from self._table_records(start)

    def _has_pairs(self) -> bool:
        """Whether the first file has the columns of pairs; all else is read as a table."""
        lines = remote_lines(self._urls[0], LONGEST_ROW_BYTES)
        try:
            return csv_columns(lines, self.text_field, self.name).pair is not None
        except DataError:  # other columns, or another dialect that the data set describes
            return False

    def _pair_records(self, start: Cursor) -> Iterator[Record]:
        for index in range(start[0], len(self._urls)):
            first = start[1] if index == start[0] else 0
            lines = remote_lines(self._urls[index], LONGEST_ROW_BYTES)
            where = self.place(index, 0).rpartition(":")[0]
            yield from csv_records(lines, where, index, first, self.text_field, True)

    def _line_records(self, start: Cursor) -> Iterator[Record]:
        for index in range(start[0], len(self._urls)):
            first = start[1] if index == start[0] else 0
            for number, line in enumerate(remote_lines(self._urls[index])):
                if number == 0 and line.lstrip().startswith(b"["):  # one JSON list a file
                    yield from self._table_records((index, first))
                    return
                if number >= first:
                    record = json_line_record(
                        line, index, number, self.text_field, self.label_field
                    )
                    if record is not None:
                        yield record

    def _table_records(self, start: Cursor) -> Iterator[Record]:
        whole = self._loader.as_streaming_dataset(split=self.split).with_format("arrow")
        n_files = whole.num_shards
        for index in range(start[0], n_files):
            first = start[1] if index == start[0] else 0
            stream = whole.shard(num_shards=n_files, index=index)
            yield from column_records(
                stream, index, first, self.text_field, self.name, self.label_field
            )

    def place(self, file: int, record: int) -> str:
        """File within the repository and line or row."""
        url = self._urls[file] if file < len(self._urls) else f"@/file {file + 1}"
        name = url.rpartition("@")[2].partition("/")[2]
        return f"{self.name}: {name}:{record + 1}"


def _ways_on(split: str) -> str:
    if split == "train":
        return "give a path of local text, or use --data demo, which needs no network"
    return "give a local file"


def _commit(repo: str, revision: str | None) -> str | None:
    from huggingface_hub import HfApi

    info = HfApi().dataset_info(repo, revision=revision, timeout=REQUEST_SECONDS)
    return info.sha


def _is_csv(loader: Any) -> bool:
    from datasets.packaged_modules.csv.csv import Csv

    return isinstance(loader, Csv)


def _is_json(loader: Any) -> bool:
    from datasets.packaged_modules.json.json import Json

    return isinstance(loader, Json)


class _hub_errors:  # noqa: N801 - a context manager used like a function
    """Failures of the hub's client become one line with both ways on.

    A class and not a generator: it is used around `yield` in generators that may be closed.
    """

    def __init__(self, source: str, split: str, midway: bool = False) -> None:
        self.name = source
        self.split = split
        self.midway = midway

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, *_: Any
    ) -> None:
        if isinstance(error, Exception) and not isinstance(error, DataError | MemoryError):
            raise _as_data_error(self.name, error, self.split, self.midway) from error


def _as_data_error(source: str, error: Exception, split: str, midway: bool = False) -> DataError:
    from datasets.exceptions import DatasetNotFoundError
    from huggingface_hub.errors import GatedRepoError, OfflineModeIsEnabled, RepositoryNotFoundError

    text = " ".join(str(error).split())
    if isinstance(error, GatedRepoError):
        return DataError(f"{source}: this data set wants you to log in first (hf auth login)")
    if isinstance(error, RepositoryNotFoundError | DatasetNotFoundError):
        return DataError(
            f"{source}: no such data set on the Hugging Face hub (or private: hf auth login); "
            "expected hub:owner/name"
        )
    if isinstance(error, OfflineModeIsEnabled):
        text = "HF_HUB_OFFLINE is set"
    if isinstance(error, ValueError) and (
        "Config name is missing" in text or "BuilderConfig" in text
    ):
        return DataError(f"{source}: {text[:300]}; write hub:owner/name:config")
    if isinstance(error, ValueError) and "split" in text.lower():
        return DataError(f"{source}: {text[:300]}; a split named {split} is needed")
    reason = text[:160] or type(error).__name__
    if midway:
        return DataError(
            f"{source}: reading from the Hugging Face hub broke off ({reason}); what was finished "
            f"stays, run the same command again to go on, or {_ways_on(split)}"
        )
    return DataError(
        f"{source}: could not be fetched from the Hugging Face hub ({reason}); {_ways_on(split)}"
    )
