"""Token shards on disk, and the arrays that training reads from them. No torch.

A shard is one file: magic (8 bytes), format version and header length (uint32, little-endian), the
SHA-256 of the header, the header as JSON (tokenizer, split, number of tokens, SHA-256 of the
payload), then the ids as little-endian uint16. Opening a shard checks everything but the payload's
checksum; `verify` checks that too. Files are memory-mapped, never read whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from budgetsweep.errors import DataError
from budgetsweep.files import atomic_file
from trainer.data.facts import DataFacts
from trainer.data.shards.manifest import (
    FORMAT_VERSION,
    Manifest,
    ShardEntry,
    cannot_write,
    load_manifest,
)

Ids = npt.NDArray[np.uint16]

MAGIC = b"BSWTOKEN"
_PREFIX = struct.Struct("<8sII32s")
_ALIGNMENT = 64
_MAX_HEADER_BYTES = 1 << 20


@dataclass(frozen=True)
class ShardHeader:
    """What a shard says about itself."""

    tokenizer: str
    split: str
    """`train`, `val` or `token_bytes`."""
    n_tokens: int
    sha256: str
    """SHA-256 of the payload."""


class TokenArray:
    """One virtual array of token ids over several memory-mapped (N,) arrays, cut to `n_tokens`.

    Raises:
        ValueError: there are fewer ids.
    """

    def __init__(self, parts: Sequence[Ids], n_tokens: int | None = None) -> None:
        available = sum(len(part) for part in parts)
        if n_tokens is None:
            n_tokens = available
        if not 0 <= n_tokens <= available:
            raise ValueError(f"n_tokens = {n_tokens}, but there are {available} ids")
        kept: list[Ids] = []
        left = n_tokens
        for part in parts:
            if left == 0:
                break
            if len(part):
                kept.append(part[:left])
                left -= len(kept[-1])
        self.parts = kept
        """The arrays behind this one, cut, without a copy; for an upload to a device."""
        self._ends = np.cumsum([len(part) for part in kept], dtype=np.int64)
        self._starts = [0, *self._ends.tolist()]
        self._n_tokens = n_tokens
        self.on_device: object = None
        """A copy on a device (`trainer.data.device_tokens`), which goes with this array."""

    @classmethod
    def from_arrays(cls, arrays: Iterable[npt.ArrayLike]) -> TokenArray:
        """An array in memory; ids of any integer type that fit in uint16.

        Raises:
            ValueError: an id is negative or above 65535, or the ids are not integers.
        """
        parts: list[Ids] = []
        for array in arrays:
            ids = np.asarray(array)
            parts.append(ids.astype(np.uint16))
            if not np.array_equal(parts[-1], ids):
                raise ValueError("expected integer ids in 0..65535")
        return cls(parts)

    def __len__(self) -> int:
        return self._n_tokens

    def count(self, token_id: int) -> int:
        """How often an id occurs."""
        return sum(int(np.count_nonzero(part == token_id)) for part in self.parts)

    def counts(self, n_ids: int) -> npt.NDArray[np.int64]:
        """How often each of the ids 0 … n_ids - 1 occurs, (n_ids,); larger ones are left out."""
        total = np.zeros(n_ids, dtype=np.int64)
        for part in self.parts:
            total += np.bincount(part, minlength=n_ids)[:n_ids]
        return total

    def __getitem__(self, key: slice) -> Ids:
        """Ids of a slice with step 1, as a new uint16 array; Python's rules for the bounds."""
        start, stop, step = key.indices(self._n_tokens)
        if step != 1:
            raise ValueError("only slices with step 1")
        out = np.empty(max(stop - start, 0), dtype=np.uint16)
        self._copy(start, int(np.searchsorted(self._ends, start, side="right")), out)
        return out

    def gather(self, starts: npt.ArrayLike, length: int) -> npt.NDArray[np.int64]:
        """Windows of `length` ids, at least 1, from (B,) starts on: (B, length) int64.

        Raises:
            IndexError: a window does not lie within the array.
        """
        first = np.asarray(starts, dtype=np.int64)
        if first.size and (first.min() < 0 or first.max() + length > self._n_tokens):
            raise IndexError(
                f"windows of {length} at {first.min()}…{first.max()} do not lie within "
                f"{self._n_tokens} tokens"
            )
        out = np.empty((len(first), length), dtype=np.int64)
        indices = np.searchsorted(self._ends, first, side="right")
        for row, start, index in zip(out, first.tolist(), indices.tolist(), strict=True):
            self._copy(start, index, row)
        return out

    def _copy(self, start: int, index: int, out: npt.NDArray[Any]) -> None:
        """Fill `out` from position `start`, which lies in part `index`."""
        filled = 0
        while filled < len(out):
            part = self.parts[index]
            offset = start + filled - self._starts[index]
            piece = part[offset : offset + len(out) - filled]
            out[filled : filled + len(piece)] = piece
            filled += len(piece)
            index += 1


@dataclass(frozen=True)
class TokenData:
    """Training and validation tokens of one text, cut to what a run may use."""

    train: TokenArray
    val: TokenArray
    tokenizer_encoding: str
    n_vocab: int
    eot: int
    """Id that ends each document."""
    bytes_per_token: float | None
    """UTF-8 bytes of validation text for each validation token, end-of-text ids (no bytes)
    counted as tokens; None: unknown. loss_nats / (ln 2 · bytes_per_token) is bits per byte."""
    data_checksum: str
    """Identifies the training tokens: their number, tokenizer and values."""
    val_checksum: str
    """SHA-256 of the validation tokens as little-endian uint16."""
    description: str
    folder: Path
    exhausted: bool
    """The source has no more text than is prepared."""
    pairs: bool = False
    """Each article is `source eot target eot`: see `trainer.data.pairs`."""

    token_bytes: Ids | None = None
    """(n_vocab,) UTF-8 bytes that each id stands for, 0 for end-of-text; None: unknown."""

    def facts(self) -> DataFacts:
        """What is known of these data without reading them."""
        return DataFacts(
            self.description, self.data_checksum, self.val_checksum, len(self.train),
            len(self.val), self._pairs_in(self.train), self._pairs_in(self.val),
            self.bytes_per_token,
        )  # fmt: skip

    def _pairs_in(self, tokens: TokenArray) -> int | None:
        """Whole pairs; None where the text is none of pairs."""
        return tokens.count(self.eot) // 2 if self.pairs else None

    def require_pairs(self) -> None:
        """Refuse running text.

        Raises:
            DataError: these are no pairs of source and target.
        """
        if not self.pairs:
            raise DataError(
                f"{self.description}: running text, but an encoder-decoder learns from pairs of "
                "source and target, such as WikiHow's wikihowAll.csv"
            )


def write_shard(path: Path, ids: Ids, *, tokenizer: str, split: str) -> ShardEntry:
    """Write (N,) ids as one shard; `path` appears complete and synced, or not at all.

    Raises:
        DataError: the file cannot be written (no space, no permission).
    """
    array = np.ascontiguousarray(ids, dtype="<u2")
    payload = array.view(np.uint8).data
    header_fields = ShardHeader(tokenizer, split, len(array), hashlib.sha256(payload).hexdigest())
    header = json.dumps(asdict(header_fields)).encode()
    header += b" " * (-(_PREFIX.size + len(header)) % _ALIGNMENT)
    prefix = _PREFIX.pack(MAGIC, FORMAT_VERSION, len(header), hashlib.sha256(header).digest())
    try:
        with atomic_file(path) as file:
            file.write(prefix)
            file.write(header)
            file.write(payload)
    except OSError as error:
        raise cannot_write(path, error) from error
    return ShardEntry(path.name, header_fields.n_tokens, header_fields.sha256)


def read_shard(path: Path, *, verify: bool = False) -> tuple[ShardHeader, Ids]:
    """The header of a shard and its ids, memory-mapped; `verify` reads and checks the payload too.

    Raises:
        DataError: the file is missing, truncated, damaged, foreign or of another version.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            prefix = file.read(_PREFIX.size)
            if len(prefix) < _PREFIX.size or not prefix.startswith(MAGIC):
                raise DataError(f"{path}: not a token file of budgetsweep")
            _, version, length, digest = _PREFIX.unpack(prefix)
            raw = file.read(min(length, _MAX_HEADER_BYTES))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    if version != FORMAT_VERSION:
        raise DataError(
            f"{path}: token file version {version}, this program reads {FORMAT_VERSION}"
        )
    if len(raw) != length or hashlib.sha256(raw).digest() != digest:
        raise DataError(f"{path}: damaged or truncated header; prepare the text again")
    found = json.loads(raw)
    header = ShardHeader(*(found[field.name] for field in fields(ShardHeader)))
    offset = _PREFIX.size + length
    expected = offset + 2 * header.n_tokens
    if size != expected:
        kind = "truncated" if size < expected else "too long"
        raise DataError(
            f"{path}: {kind}: {size} bytes, expected {expected} for {header.n_tokens} tokens; "
            "delete its folder and prepare the text again"
        )
    ids: Ids = np.empty(0, dtype=np.uint16)
    if header.n_tokens:
        mapped = np.memmap(path, dtype="<u2", mode="r", offset=offset, shape=(header.n_tokens,))
        ids = mapped.view(np.ndarray)  # the subclass makes each slice ten times as slow
    if verify and sha256_of_ids([ids]) != header.sha256:
        raise DataError(
            f"{path}: damaged (checksum of the tokens differs); "
            "delete its folder and prepare the text again"
        )
    return header, ids


def sha256_of_ids(parts: Iterable[Ids]) -> str:
    """SHA-256 (hex) of ids as little-endian uint16, parts joined."""
    digest = hashlib.sha256()
    for part in parts:
        if len(part):
            digest.update(np.ascontiguousarray(part, dtype="<u2").view(np.uint8).data)
    return digest.hexdigest()


def open_tokens(
    folder: Path | str,
    train_tokens: int | None = None,
    val_tokens: int | None = None,
    *,
    verify: bool = False,
) -> TokenData:
    """Open a prepared folder, cut to the first `train_tokens` and `val_tokens`.

    Headers and sizes of all files used are checked always, payload checksums with `verify`.

    Raises:
        DataError: not a prepared folder, preparation not finished, a file missing, damaged or
            foreign, or less prepared than asked for.
    """
    folder = Path(folder)
    manifest = load_manifest(folder)
    if not manifest.val_frozen:
        raise DataError(
            f"{folder}: preparation was not finished; run `budgetsweep data prepare` again, "
            "it continues where it stopped"
        )
    train_entries = _needed(folder, manifest.train, train_tokens, "training")
    val_entries = _needed(folder, manifest.val, val_tokens, "validation")
    train = TokenArray(
        [_shard(folder, manifest, e, "train", verify) for e in train_entries], train_tokens
    )
    val = TokenArray([_shard(folder, manifest, e, "val", verify) for e in val_entries], val_tokens)
    bytes_per_token = table = None
    if manifest.token_bytes is not None:
        table = _shard(folder, manifest, manifest.token_bytes, "token_bytes", True)
        bytes_per_token = _bytes_per_token(val, table)
    return TokenData(
        train=train,
        val=val,
        tokenizer_encoding=manifest.tokenizer,
        n_vocab=manifest.n_vocab,
        eot=manifest.eot,
        bytes_per_token=bytes_per_token,
        data_checksum=_data_checksum(manifest.tokenizer, train_entries, train),
        val_checksum=sha256_of_ids(val.parts),
        description=manifest.description,
        folder=folder,
        exhausted=manifest.exhausted,
        pairs=manifest.pairs,
        token_bytes=table,
    )


def _needed(
    folder: Path, entries: Sequence[ShardEntry], n_tokens: int | None, what: str
) -> list[ShardEntry]:
    available = sum(entry.n_tokens for entry in entries)
    if n_tokens is None:
        return list(entries)
    if n_tokens > available:
        raise DataError(
            f"{folder}: {n_tokens} {what} tokens asked for, {available} are prepared; "
            "ask for less, or prepare more (budgetsweep data prepare) where the text has more"
        )
    kept = []
    for entry in entries:
        if n_tokens <= 0:
            break
        kept.append(entry)
        n_tokens -= entry.n_tokens
    return kept


def _shard(folder: Path, manifest: Manifest, entry: ShardEntry, split: str, verify: bool) -> Ids:
    path = folder / entry.file
    header, ids = read_shard(path, verify=verify)
    found = (header.tokenizer, header.split, header.n_tokens, header.sha256)
    if found != (manifest.tokenizer, split, entry.n_tokens, entry.sha256):
        raise DataError(
            f"{path}: is not the file that the manifest of this folder names; "
            "delete the folder and prepare the text again"
        )
    return ids


def _bytes_per_token(val: TokenArray, table: Ids) -> float | None:
    n_bytes = sum(int(table[part].sum(dtype=np.int64)) for part in val.parts)
    return n_bytes / len(val) if n_bytes else None


def _data_checksum(tokenizer: str, entries: Sequence[ShardEntry], train: TokenArray) -> str:
    """Hash of the whole shards' checksums and of the cut last one; reads one shard at most."""
    lines = [f"{tokenizer} {len(train)}"]
    for entry, part in zip((e for e in entries if e.n_tokens), train.parts, strict=True):
        whole = len(part) == entry.n_tokens
        lines.append(f"{len(part)} {entry.sha256 if whole else sha256_of_ids([part])}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
