"""Where prepared tokens lie, under which name, and who may write there. No torch."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs

from budgetsweep.errors import DataError
from budgetsweep.files import file_lock
from trainer.data.config import DataConfig
from trainer.data.shards.manifest import (
    FORMAT_VERSION,
    LOCK_NAME,
    MANIFEST_NAME,
    load_manifest,
)
from trainer.data.shards.tokens import open_tokens
from trainer.data.sources import source_class

CACHE_VARIABLE = "BUDGETSWEEP_CACHE"
_LOG = logging.getLogger("budgetsweep")
_WAIT_SECONDS = 0.2


@dataclass(frozen=True)
class PreparedInfo:
    """One prepared text, for a list."""

    folder: Path
    state: str
    """`ready`, `ready (whole text)`, `unfinished` or `damaged: why`."""
    size_bytes: int
    source: str = ""
    tokenizer_encoding: str = ""
    train_tokens: int = 0
    val_tokens: int = 0
    documents: int = 0
    """Of both sides; a pair counts as one."""
    pairs: bool = False
    """Each document is a pair of source and target."""
    dropped_documents: int = 0
    """Read but used for neither side."""
    bad_records: int = 0


def default_cache_dir() -> Path:
    """`$BUDGETSWEEP_CACHE`, or the cache folder of the platform."""
    chosen = os.environ.get(CACHE_VARIABLE)
    if chosen:
        return Path(chosen).expanduser()
    return platformdirs.user_cache_path("budgetsweep", appauthor=False)


def data_identity(data: DataConfig, tokenizer_encoding: str) -> str:
    """Hash of everything that decides the tokens; local files by path, size and time of change.

    Raises:
        DataError: a local file is not there.
    """

    def identity(name: str) -> dict[str, Any]:
        return source_class(name)(name, data.text_field).identity()

    plain = {
        "format": FORMAT_VERSION,
        "tokenizer": tokenizer_encoding,
        "source": identity(data.source),
        "validation": data.validation and identity(data.validation),
    }
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def folder_for(data: DataConfig, tokenizer_encoding: str, cache_dir: Path | None = None) -> Path:
    """Folder of the prepared tokens of a text, whether it exists or not; needs no network.

    A source that is itself a prepared folder is its own answer.

    Raises:
        DataError: a local file is not there.
    """
    source = source_class(data.source)(data.source)
    if source.prepared_folder is not None:
        return source.prepared_folder
    identity = data_identity(data, tokenizer_encoding)
    words = re.sub(r"[^A-Za-z0-9.]+", "-", source.short_name())
    name = f"{words[-40:].strip('-.') or 'text'}-{tokenizer_encoding}-{identity[:12]}"
    return (cache_dir or default_cache_dir()) / "tokens" / name


def list_prepared(cache_dir: Path | None = None, *, verify: bool = False) -> list[PreparedInfo]:
    """What is prepared in the cache, by name of folder; `verify` reads and checks all tokens."""
    manifests = ((cache_dir or default_cache_dir()) / "tokens").glob(f"*/{MANIFEST_NAME}")
    return [prepared_info(path.parent, verify=verify) for path in sorted(manifests)]


def prepared_info(folder: Path, *, verify: bool = False) -> PreparedInfo:
    """What is prepared in one folder; a damaged one has a `state` that says why."""
    size = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    try:
        manifest = load_manifest(folder)
        state = "unfinished"
        if manifest.val_frozen:
            open_tokens(folder, verify=verify)
            state = "ready (whole text)" if manifest.exhausted else "ready"
    except DataError as error:
        return PreparedInfo(folder, f"damaged: {error}", size)
    return PreparedInfo(
        folder=folder,
        state=state,
        size_bytes=size,
        source=manifest.source,
        tokenizer_encoding=manifest.tokenizer,
        train_tokens=manifest.train_tokens,
        val_tokens=manifest.val_tokens,
        documents=manifest.documents + manifest.val_documents,
        pairs=manifest.pairs,
        dropped_documents=manifest.dropped_documents,
        bad_records=manifest.bad_records,
    )


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Make `folder` and hold it against other processes that prepare the same text.

    Waits while another holds it, and says so once. The lock goes with its process, however it ends.

    Raises:
        DataError: the cache folder cannot be written, or its file system has no locks.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / LOCK_NAME).touch()
        lock = file_lock(
            folder / LOCK_NAME,
            poll_seconds=_WAIT_SECONDS,
            when_waiting=lambda: _LOG.warning(
                "%s: another process is preparing this text; waiting for it", folder
            ),
        )
    except OSError as error:
        raise DataError(
            f"{folder}: cannot be written or locked ({error.strerror}); set {CACHE_VARIABLE} to a "
            "folder of yours on a local disk"
        ) from error
    with lock:
        yield
