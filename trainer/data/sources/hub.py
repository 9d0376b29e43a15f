"""Data sets of the Hugging Face hub, streamed through `datasets`. No torch."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator
from typing import Any, Self, final

from budgetsweep.errors import DataError
from trainer.data.sources import Cursor, Record, Source
from trainer.data.sources.local_files import PIECE_BYTES
from trainer.data.sources.records import (
    PARQUET_ROWS,
    column_records,
    fields_of,
    json_records,
    lines_of,
    require_fields,
)
from trainer.data.time_limit import answer_within

REQUEST_SECONDS = 10.0
"""Time limit of the first request to the hub."""
REACH_SECONDS = 18.0
"""The same, name look-up included, which knows no limit of its own."""
C4 = "hub:allenai/c4:en"
_ROWS = 64


@final
class HubSource(Source):
    """One split of a data set, file by file, at one commit, whose name is in `revision`."""

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
        """Take `c4` or `hub:owner/name[:config]`, at a commit, with labels if a field is named.

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
            # Lines of JSON are read one by one, as local ones are: a bad one is no reason to stop.
            self._by_line = _is_json(loader) and loader.config.field is None and self._urls
        if names:
            require_fields(wanted, names, self.name)
        return self

    def records(self, start: Cursor = (0, 0)) -> Iterator[Record]:
        """Records file by file; a file before `start` is not fetched."""
        with datasets_library() as datasets, _hub_errors(self.name, self.split, midway=True):
            whole, n_files = None, len(self._urls)
            if not self._by_line:
                whole = self._loader.as_streaming_dataset(split=self.split).with_format("arrow")
                n_files = whole.num_shards
            for index in range(start[0], n_files):
                first = start[1] if index == start[0] else 0
                fields = (self.text_field, self.label_field)
                if whole is None:
                    lines = _remote_lines(datasets, self._urls[index])
                    yield from json_records(lines, self.name, index, first, *fields)
                else:
                    tables = self._tables(whole.shard(num_shards=n_files, index=index))
                    yield from column_records(tables, index, first, *fields)

    def _tables(self, stream: Any) -> Iterator[Any]:
        wanted = fields_of(self.text_field, self.label_field)
        for table in stream.iter(batch_size=_ROWS):
            require_fields(wanted, table.column_names, self.name)
            yield table

    def place(self, file: int, record: int) -> str:
        """File within the repository and line or row."""
        url = self._urls[file] if file < len(self._urls) else f"@/file {file + 1}"
        name = url.rpartition("@")[2].partition("/")[2]
        return f"{self.name}: {name}:{record + 1}"


def _commit(repo: str, revision: str | None) -> str | None:
    from huggingface_hub import HfApi

    info = HfApi().dataset_info(repo, revision=revision, timeout=REQUEST_SECONDS)
    return info.sha


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


def _is_json(loader: Any) -> bool:
    from datasets.packaged_modules.json.json import Json

    return isinstance(loader, Json)


def _remote_lines(datasets: Any, url: str) -> Iterator[bytes]:
    """Lines of a file of the hub (hf://…)."""
    address = datasets.StreamingDownloadManager().download_and_extract(url)
    with datasets.utils.file_utils.xopen(address, "rb") as file:
        yield from lines_of(iter(lambda: file.read(PIECE_BYTES), b""))


@contextlib.contextmanager
def _hub_errors(source: str, split: str, midway: bool = False) -> Iterator[None]:
    """Failures of the hub's client become one line with both ways on."""
    try:
        yield
    except (DataError, MemoryError):
        raise
    except Exception as error:
        raise _as_data_error(source, error, split, midway) from error


def _as_data_error(source: str, error: Exception, split: str, midway: bool) -> DataError:
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
    ways_on = "give a local file"
    if split == "train":
        ways_on = "give a path of local text, or use --data demo, which needs no network"
    if midway:
        return DataError(
            f"{source}: reading from the Hugging Face hub broke off ({reason}); what was finished "
            f"stays, run the same command again to go on, or {ways_on}"
        )
    return DataError(
        f"{source}: could not be fetched from the Hugging Face hub ({reason}); {ways_on}"
    )
