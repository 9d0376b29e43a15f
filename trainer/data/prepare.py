"""Text to token shards in the cache: in parallel, resumable, extended when more is wanted.

The order of events makes every kill harmless. A worker writes a block's shards, each complete or
absent; then the manifest, replaced in one step, takes them in, strictly in the order of the source.
A restart reads on from the manifest's cursor. No torch.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path

from budgetsweep.errors import ConfigError, DataError
from trainer.config import TOKENIZER_VOCABULARIES
from trainer.data.cache import data_identity, folder_for, locked
from trainer.data.config import DataConfig
from trainer.data.shards.manifest import LOCK_NAME, MANIFEST_NAME, Manifest, load_manifest
from trainer.data.shards.progress import PrepareProgress
from trainer.data.shards.tokens import TokenData, open_tokens
from trainer.data.sources import PrepareJob, Source, source_class

_LOG = logging.getLogger("budgetsweep")
_MOST_WORKERS = 8


def prepare(
    data: DataConfig,
    tokenizer_encoding: str,
    *,
    train_tokens: int | None,
    val_tokens: int | None,
    cache_dir: Path | None = None,
    workers: int | None = None,
    on_progress: Callable[[PrepareProgress], None] | None = None,
) -> TokenData:
    """Make sure that enough tokens of a text are prepared, and open them, cut to what is wanted.

    Nothing is done where enough is there; more is appended where more training tokens are wanted.
    Validation is decided by the first preparation that completes and never changes afterwards:
    about 2 M tokens (or `val_tokens`, if more), but from 1/100 to 1/20 of the documents; or all of
    `data.validation`. A source with less text than wanted gives what it has (`exhausted`).

    Args:
        train_tokens: training tokens wanted; None: data.train_tokens, or all that there are.
        val_tokens: validation tokens wanted; None: data.val_tokens, or what the first preparation
            decided.
        workers: tokenising threads; None: one a core, 8 at most.

    Raises:
        DataError: no such source, nothing usable in it, no network, no space, damaged files, or no
            number of tokens for a source on the hub.
    """
    train_tokens = data.train_tokens if train_tokens is None else train_tokens
    val_tokens = data.val_tokens if val_tokens is None else val_tokens
    folder, is_source = _folder(data, tokenizer_encoding, cache_dir)
    source = source_class(data.source)
    if not is_source and not _is_enough(source, _manifest_of(folder), train_tokens):
        with locked(folder):
            manifest = _manifest_of(folder)  # another process may have done it in the meantime
            if not _is_enough(source, manifest, train_tokens):
                if train_tokens is None and not source.has_end:
                    raise DataError(
                        f"{data.source}: read from the network only as far as needed: say how many "
                        "training tokens you want (data.train_tokens)"
                    )
                _run(PrepareJob(
                    data, tokenizer_encoding, data_identity(data, tokenizer_encoding), folder,
                    manifest, train_tokens, val_tokens,
                    workers or min(os.cpu_count() or 1, _MOST_WORKERS), on_progress,
                ))  # fmt: skip
                if data_identity(data, tokenizer_encoding)[:12] not in folder.name:
                    raise DataError(
                        f"{data.source}: changed while it was read; run the same command again"
                    )
    return _open_up_to(folder, train_tokens, val_tokens)


def _run(job: PrepareJob) -> None:
    data, revision = job.data, job.manifest.revision if job.manifest else None
    source = source_class(data.source)(data.source, data.text_field, revision)
    try:
        manifest = source.copy_tokens(job)
        if manifest is None:
            from trainer.data.writer import Preparation

            manifest = Preparation(job, source).run()
    except DataError:
        there = _manifest_of(job.folder)
        if there is None or there.train_tokens + there.val_tokens == 0:  # leave no trace
            for path in job.folder.iterdir():
                if path.name != LOCK_NAME:
                    path.unlink()
        raise
    if manifest.bad_records:
        _LOG.warning(
            "%s: %d bad records left out, the first: %s",
            data.source, manifest.bad_records, "; ".join(manifest.bad_examples),
        )  # fmt: skip


def open_prepared(
    data: DataConfig, tokenizer_encoding: str, cache_dir: Path | None = None
) -> TokenData:
    """Open prepared tokens, cut to data.train_tokens and data.val_tokens; prepares nothing.

    Raises:
        DataError: not prepared, less prepared than data asks for, or damaged.
    """
    folder, _ = _folder(data, tokenizer_encoding, cache_dir)
    manifest = _manifest_of(folder)
    if manifest is None:
        raise DataError(
            f"{data.source}: not prepared with tokenizer {tokenizer_encoding} (or changed since); "
            "run `budgetsweep data prepare`"
        )
    return open_tokens(folder, data.train_tokens, data.val_tokens)


def _folder(data: DataConfig, tokenizer_encoding: str, cache_dir: Path | None) -> tuple[Path, bool]:
    """Where the tokens lie, and whether that is the source itself, which has to be as wanted."""
    if tokenizer_encoding not in TOKENIZER_VOCABULARIES:
        known = ", ".join(TOKENIZER_VOCABULARIES)
        raise ConfigError(f"tokenizer_encoding = {tokenizer_encoding!r}: expected one of {known}")
    folder = folder_for(data, tokenizer_encoding, cache_dir)
    if source_class(data.source)(data.source).prepared_folder is None:
        return folder, False
    made_with = load_manifest(folder).tokenizer
    if made_with != tokenizer_encoding:
        raise DataError(
            f"{folder}: prepared with tokenizer {made_with}, not {tokenizer_encoding}; "
            f"set tokenizer_encoding: {made_with}"
        )
    if data.validation is not None:
        raise DataError(f"{folder}: prepared tokens have their own validation; no data.validation")
    return folder, True


def _manifest_of(folder: Path) -> Manifest | None:
    return load_manifest(folder) if (folder / MANIFEST_NAME).exists() else None


def _is_enough(source: type[Source], manifest: Manifest | None, train_tokens: int | None) -> bool:
    if manifest is None or not manifest.val_frozen:
        return False
    if train_tokens is None:  # of a source without an end what is there will do
        return manifest.exhausted or not source.has_end
    return manifest.exhausted or manifest.train_tokens >= train_tokens


def _open_up_to(folder: Path, train_tokens: int | None, val_tokens: int | None) -> TokenData:
    there = load_manifest(folder)
    n_train = min(there.train_tokens, train_tokens or there.train_tokens)
    return open_tokens(folder, n_train, min(there.val_tokens, val_tokens or there.val_tokens))
