"""The course's tokens.npz (arrays `train` and `val` of token ids) to token shards. No torch.

Nothing in the archive is ever unpickled.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, final

import numpy as np
import numpy.typing as npt

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
from trainer.data.shards.tokens import TokenArray, write_shard
from trainer.data.sources import PrepareJob, Source
from trainer.data.tokenizers import END_OF_TEXT, load_tokenizer

IdArray = npt.NDArray[np.integer[Any]]

SHARD_TOKENS = 1 << 22


@final
class CourseSource(Source):
    """The file, whose arrays are copied as they are."""

    claims_before = 1

    @classmethod
    def claims(cls, name: str) -> bool:
        """A file whose name ends with .npz."""
        path = Path(name).expanduser()
        return path.suffix.lower() == ".npz" and path.is_file()

    def identity(self) -> dict[str, Any]:
        """Path, size and time of change."""
        path = Path(self.name).expanduser().absolute()
        status = path.stat()
        return {"npz": [str(path), status.st_size, status.st_mtime_ns]}

    def copy_tokens(self, job: PrepareJob) -> Manifest:
        """Copy `val` and as much of `train` as is wanted.

        Raises:
            DataError: not such a file, damaged, ids of another tokenizer, or no space.
        """
        if job.data.validation is not None:
            raise DataError(f"{self.name}: has its own validation tokens; remove data.validation")
        train, val = (self._ids(name, job.tokenizer) for name in ("train", "val"))
        manifest = job.manifest or self._first_manifest(val, job)
        wanted = min(job.train_tokens or len(train), len(train))
        meter = PrepareMeter(manifest, job.on_progress, wanted)
        while (first := manifest.train_tokens) < wanted:
            piece = train[first : first + SHARD_TOKENS]
            (entry,) = _write(piece, "train", job, len(manifest.train))
            manifest = replace(
                manifest, train=(*manifest.train, entry), cursor=(0, first + entry.n_tokens)
            )
            save_manifest(job.folder, manifest)
            meter.count(0, entry.n_tokens, 0)
            meter.tick(manifest)
        exhausted = manifest.train_tokens >= len(train)
        manifest = replace(manifest, val_frozen=True, exhausted=exhausted, updated_utc=utc_now())
        save_manifest(job.folder, manifest)
        meter.tick(manifest, force=True)
        return manifest

    def _ids(self, name: str, encoding: str) -> IdArray:
        ids = read_ids(Path(self.name).expanduser(), name)
        check_ids(ids, TOKENIZER_VOCABULARIES[encoding], f"{self.name}: array {name!r}")
        return ids

    def _first_manifest(self, val: IdArray, job: PrepareJob) -> Manifest:
        """With all of `val`."""
        encoding = job.tokenizer
        token_bytes: ShardEntry | None = None
        try:
            table = load_tokenizer(encoding).token_bytes()
        except DataError:  # no network: bits per byte stay unknown, all else works
            pass
        else:
            path = job.folder / TOKEN_BYTES_NAME
            token_bytes = write_shard(path, table, tokenizer=encoding, split="token_bytes")
        return Manifest(
            source=self.name,
            description=f"{self.name}, tokenizer {encoding}",
            identity=job.identity,
            tokenizer=encoding,
            n_vocab=TOKENIZER_VOCABULARIES[encoding],
            eot=END_OF_TEXT[encoding],
            val=_write(val, "val", job),
            token_bytes=token_bytes,
            created_utc=utc_now(),
        )


def _write(ids: IdArray, split: str, job: PrepareJob, number: int = 0) -> tuple[ShardEntry, ...]:
    """Shards of ids, the first of which has this number."""
    pieces = (ids[first : first + SHARD_TOKENS] for first in range(0, len(ids), SHARD_TOKENS))
    return tuple(
        write_shard(
            job.folder / f"{split}-{index:05d}.tok", piece.astype(np.uint16),
            tokenizer=job.tokenizer, split=split,
        )
        for index, piece in enumerate(pieces, number)
    )  # fmt: skip


def read_ids(path: Path, name: str) -> IdArray:
    """(N,) ids of a .npy file, or of the array `name` of an .npz file.

    Raises:
        DataError: not such a file, damaged, or no such array.
    """
    expected = "expected one row of token ids, in an .npz the arrays train and val"
    try:
        with path.open("rb") as raw:
            ids = np.load(raw, allow_pickle=False)
            if isinstance(ids, np.lib.npyio.NpzFile):
                if name not in ids.files:
                    found = (", ".join(ids.files) or "none")[:200]
                    raise DataError(f"{path}: no array {name!r} (arrays: {found}); {expected}")
                ids = np.asarray(ids[name])
    except DataError:
        raise
    except Exception as error:  # numpy and zipfile have a dozen for a file that is not theirs
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:200]
        raise DataError(f"{path}: damaged or no array of ids ({reason}); {expected}") from error
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise DataError(f"{path}: holds {ids.dtype} of shape {ids.shape}; {expected}")
    return ids


def check_ids(ids: IdArray | TokenArray, n_vocab: int, where: str) -> None:
    """Refuse ids that are not of a vocabulary, and less than two of them.

    Raises:
        DataError: so it is.
    """
    if len(ids) < 2:
        raise DataError(f"{where}: {len(ids)} tokens; at least 2 are needed to predict one")
    values = ids[:]
    lowest, highest = int(values.min()), int(values.max())
    if lowest < 0 or highest >= n_vocab:
        raise DataError(
            f"{where}: token id {lowest if lowest < 0 else highest}, but the vocabulary has ids 0 "
            f"to {n_vocab - 1}: it is of another tokenizer"
        )
