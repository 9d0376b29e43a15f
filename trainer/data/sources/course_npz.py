"""The course's tokens.npz (arrays `train` and `val` of token ids) to token shards. No torch.

The arrays are read in pieces from the zip archive, so memory does not depend on their size, and
nothing in the archive is ever unpickled.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, final

import numpy as np

from budgetsweep.errors import DataError
from trainer.config import TOKENIZER_VOCABULARIES
from trainer.data.shards.manifest import (
    TOKEN_BYTES_NAME,
    Manifest,
    ShardEntry,
    save_manifest,
    utc_now,
)
from trainer.data.shards.progress import PrepareMeter
from trainer.data.shards.tokens import Ids, write_shard
from trainer.data.sources import PrepareJob, Source
from trainer.data.tokenizers import END_OF_TEXT, load_tokenizer

SHARD_TOKENS = 1 << 22
_EXPECTED = "expected the arrays train and val of token ids"


@final
class CourseSource(Source):
    """The file, whose arrays are copied as they are."""

    claims_before = 1

    @classmethod
    def claims(cls, name: str) -> bool:
        """A file whose name ends with .npz."""
        path = Path(name).expanduser()
        return path.suffix.lower() == ".npz" and path.is_file()

    @property
    def file(self) -> Path:
        """The file."""
        return Path(self.name).expanduser()

    def identity(self) -> dict[str, Any]:
        """Path, size and time of change."""
        path = self.file.absolute()
        status = path.stat()
        return {"npz": [str(path), status.st_size, status.st_mtime_ns]}

    def copy_tokens(self, job: PrepareJob) -> Manifest:
        """Copy `val` and as much of `train` as is job.

        Raises:
            DataError: not such a file, damaged, ids of another tokenizer, or no space.
        """
        path, folder, manifest = self.file, job.folder, job.manifest
        if job.data.validation is not None:
            raise DataError(f"{path}: has its own validation tokens; remove data.validation")
        n_vocab = TOKENIZER_VOCABULARIES[job.tokenizer]
        try:
            with zipfile.ZipFile(path) as archive:
                n_train = _checked_length(archive, path, "train")
                _checked_length(archive, path, "val")
                if manifest is None:
                    manifest = self._with_validation(archive, job)
                meter = PrepareMeter(manifest, job.on_progress, None)
                meter.wanted = n_train
                if job.train_tokens is not None:
                    meter.wanted = min(job.train_tokens, n_train)
                for ids in _pieces(archive, path, "train", n_vocab, manifest.train_tokens):
                    if manifest.train_tokens >= meter.wanted:
                        break
                    entry = _write(folder, "train", len(manifest.train), ids, job.tokenizer)
                    manifest = manifest.with_changes(
                        train=(*manifest.train, entry), cursor=(0, manifest.train_tokens + len(ids))
                    )
                    save_manifest(folder, manifest)
                    meter.count(0, len(ids), 0)
                    meter.tick(manifest)
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
            raise DataError(
                f"{path}: damaged or not an .npz file ({error}); {_EXPECTED}"
            ) from error
        exhausted = manifest.train_tokens >= n_train
        manifest = manifest.with_changes(
            val_frozen=True, exhausted=exhausted, updated_utc=utc_now()
        )
        save_manifest(folder, manifest)
        meter.tick(manifest, force=True)
        return manifest

    def _with_validation(self, archive: zipfile.ZipFile, job: PrepareJob) -> Manifest:
        """The first manifest, with all of `val`."""
        encoding, folder = job.tokenizer, job.folder
        n_vocab = TOKENIZER_VOCABULARIES[encoding]
        pieces = enumerate(_pieces(archive, self.file, "val", n_vocab, 0))
        val = tuple(_write(folder, "val", index, ids, encoding) for index, ids in pieces)
        token_bytes: ShardEntry | None = None
        try:
            table = load_tokenizer(encoding).token_bytes()
        except DataError:  # no network: bits per byte stay unknown, all else works
            pass
        else:
            token_bytes = write_shard(
                folder / TOKEN_BYTES_NAME, table, tokenizer=encoding, split="token_bytes"
            )
        return Manifest(
            source=self.name,
            description=f"{self.name}, tokenizer {encoding}",
            identity=job.identity,
            tokenizer=encoding,
            n_vocab=n_vocab,
            eot=END_OF_TEXT[encoding],
            val=val,
            token_bytes=token_bytes,
            created_utc=utc_now(),
        )


def _write(folder: Path, split: str, index: int, ids: Ids, encoding: str) -> ShardEntry:
    return write_shard(folder / f"{split}-{index:05d}.tok", ids, tokenizer=encoding, split=split)


def _checked_length(archive: zipfile.ZipFile, path: Path, name: str) -> int:
    with _open_member(archive, path, name) as file:
        return _read_header(file, path, name)[0]


def _open_member(archive: zipfile.ZipFile, path: Path, name: str) -> IO[bytes]:
    try:
        return archive.open(f"{name}.npy")
    except KeyError as error:
        found = ", ".join(sorted(n.removesuffix(".npy") for n in archive.namelist())) or "none"
        raise DataError(
            f"{path}: no array {name!r} (arrays: {found[:200]}); {_EXPECTED}"
        ) from error
    except RuntimeError as error:  # zipfile's word for encrypted or packed in an unknown way
        raise DataError(f"{path}: array {name!r} cannot be unpacked ({error})") from error


def _read_header(file: IO[bytes], path: Path, name: str) -> tuple[int, np.dtype[Any]]:
    """(length, dtype); the file is at the first id afterwards."""
    try:
        version = np.lib.format.read_magic(file)
        read = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, _, dtype = read(file)
    except (ValueError, KeyError) as error:
        raise DataError(f"{path}: array {name!r} is not a numpy array; {_EXPECTED}") from error
    if dtype.kind not in "iu":
        kind = "Python objects" if dtype.hasobject else str(dtype)
        raise DataError(f"{path}: array {name!r} holds {kind}, not integers; {_EXPECTED}")
    if len(shape) != 1 or shape[0] == 0:
        raise DataError(f"{path}: array {name!r} has shape {shape}; expected one row of token ids")
    return shape[0], dtype


def _pieces(
    archive: zipfile.ZipFile, path: Path, name: str, n_vocab: int, first: int
) -> Iterator[Ids]:
    """Ids from position `first` on, a shard at a time, each checked against the vocabulary."""
    with _open_member(archive, path, name) as file:
        length, dtype = _read_header(file, path, name)
        file.seek(first * dtype.itemsize, 1)
        while first < length:
            n_bytes = min(SHARD_TOKENS, length - first) * dtype.itemsize
            raw = file.read(n_bytes)
            if len(raw) < n_bytes:
                raise DataError(f"{path}: array {name!r} ends in the middle; fetch the file again")
            ids = np.frombuffer(raw, dtype=dtype)
            lowest, highest = int(ids.min()), int(ids.max())
            if lowest < 0 or highest >= n_vocab:
                wrong = lowest if lowest < 0 else highest
                raise DataError(
                    f"{path}: array {name!r} has id {wrong}, but the tokenizer has ids 0 to "
                    f"{n_vocab - 1}; set tokenizer_encoding to the one that made the file"
                )
            yield ids.astype(np.uint16)
            first += len(ids)
