"""Data sets of the Hugging Face hub, streamed through `datasets`. No torch."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, final

from budgetsweep.errors import DataError
from trainer.corpus import Corpus
from trainer.loading import (
    Cursor,
    Record,
    column_records,
    import_datasets,
    missing_field,
    without_torch,
)

T = TypeVar("T")

REQUEST_SECONDS = 10.0
"""Time limit of the first request to the hub."""
REACH_SECONDS = 18.0
"""The same, name look-up included, which knows no limit of its own."""
_PARQUET_ROWS = 512
WAYS_ON = "give a path of local text, or use --data demo, which needs no network"


@final
class HubCorpus(Corpus):
    """The `train` split of a data set, file by file, at one commit.

    Args:
        source: the name that the user gave, for messages.
        repo: `owner/name`.
        config: name of the configuration; None: the only one.
        text_field: field with the text.
        revision: commit; None: the newest, whose name is in `revision` afterwards.

    Raises:
        DataError: no network, no such data set, configuration, split or field.
    """

    def __init__(
        self, source: str, repo: str, config: str | None, text_field: str, revision: str | None
    ) -> None:
        self.source = source
        self.repo = repo
        self.config = config
        self.text_field = text_field
        self.description = source if source != "c4" else f"c4 ({repo}, {config})"
        datasets = import_datasets()
        self.revision = _reach(source, lambda: _commit(repo, revision))
        with _hub_errors(source):
            loader = datasets.load_dataset_builder(repo, config, revision=self.revision)
            if hasattr(loader.config, "columns"):  # parquet: fetch one column, in small batches
                only = {"columns": [text_field], "batch_size": _PARQUET_ROWS}
                names = list(loader.info.features or {})
                if names and text_field not in names:
                    raise missing_field(source, text_field, names)
                loader = datasets.load_dataset_builder(
                    repo, config, revision=self.revision, **(only if names else {})
                )
            self._urls = _train_files(loader)
            with without_torch():
                self._stream = loader.as_streaming_dataset(split="train").with_format("arrow")
            names = list(self._stream.features or {})
        if names and text_field not in names:
            raise missing_field(source, text_field, names)

    def identity(self) -> dict[str, Any]:
        """Repository, configuration and field; the commit is pinned in the manifest."""
        return {"hub": self.repo, "config": self.config, "text_field": self.text_field}

    def records(self, start: Cursor = (0, 0)) -> Iterator[Record]:
        """Rows file by file; a file before `start` is not fetched."""
        n_files = self._stream.num_shards
        for index in range(start[0], n_files):
            first = start[1] if index == start[0] else 0
            with _hub_errors(self.source):
                with without_torch():
                    stream = self._stream.shard(num_shards=n_files, index=index)
                yield from column_records(stream, index, first, self.text_field, self.source)

    def place(self, file: int, record: int) -> str:
        """File within the repository and row."""
        name = self._urls[file] if file < len(self._urls) else f"file {file + 1}"
        return f"{self.source}: {name}: row {record + 1}"


def _commit(repo: str, revision: str | None) -> str | None:
    from huggingface_hub import HfApi

    info = HfApi().dataset_info(repo, revision=revision, timeout=REQUEST_SECONDS)
    return info.sha


def _train_files(loader: Any) -> list[str]:
    """Paths of the data files within the repository, in the order of the stream's shards."""
    files = (loader.config.data_files or {}).get("train", [])
    return [str(file).rpartition("@")[2].partition("/")[2] for file in files]


def _reach(source: str, ask: Callable[[], T]) -> T:
    """Run the first request to the hub in a thread, so that nothing can make it wait for long."""
    answers: list[T] = []
    failures: list[Exception] = []

    def work() -> None:
        try:
            answers.append(ask())
        except Exception as error:  # noqa: BLE001 - reported below, in the caller's thread
            failures.append(error)

    thread = threading.Thread(target=work, name="reach-hub", daemon=True)
    thread.start()
    thread.join(REACH_SECONDS)
    if answers:
        return answers[0]
    if failures:
        raise _as_data_error(source, failures[0]) from failures[0]
    raise DataError(
        f"{source}: could not be fetched from the Hugging Face hub (no answer within "
        f"{REACH_SECONDS:.0f} s); {WAYS_ON}"
    )


class _hub_errors:  # noqa: N801 - a context manager used like a function
    """Failures of the hub's client become one line with both ways on.

    A class and not a generator: it is used around `yield` in generators that may be closed.
    """

    def __init__(self, source: str) -> None:
        self.source = source

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, *_: Any
    ) -> None:
        if isinstance(error, Exception) and not isinstance(error, DataError | MemoryError):
            raise _as_data_error(self.source, error) from error


def _as_data_error(source: str, error: Exception) -> DataError:
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
        return DataError(f"{source}: {text[:300]}; a split named train is needed")
    reason = text[:160] or type(error).__name__
    return DataError(
        f"{source}: could not be fetched from the Hugging Face hub ({reason}); {WAYS_ON}"
    )
