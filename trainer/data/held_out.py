"""Token ids of one file, whole, to measure a model on: text of any kind, or ids. No torch.

A plain text file is tokenised as it is, nothing added. A record of JSON or parquet is a document:
an end-of-text id follows each, as in training.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from budgetsweep.errors import DataError
from trainer.data.shards.tokens import Ids, TokenArray, read_shard
from trainer.data.sources import open_source
from trainer.data.sources.local_files import EXPECTED, decompressed, kind_of
from trainer.data.sources.records import named_errors
from trainer.data.tokenizers import Tokenizer, load_tokenizer

IdArray = npt.NDArray[np.integer[Any]]

_CHECKED = 1 << 22
"""Ids that are checked at a time."""
_LOG = logging.getLogger("budgetsweep")


@dataclass(frozen=True)
class HeldOut:
    """Tokens to measure a model on."""

    ids: IdArray | TokenArray
    """In order; every id is one of the model's."""
    bytes_per_token: float | None
    """UTF-8 bytes of text a token, as in `trainer.data.shards.tokens.TokenData`; None: not
    known."""
    description: str
    """What was read, for people."""
    pairs: bool = False
    """Each article is `source eot target eot`: see `trainer.data.pairs`."""


def read_held_out(
    path: Path,
    tokenizer: str | None,
    n_vocab: int,
    *,
    text_field: str = "text",
    n_tokens: int | None = None,
) -> HeldOut:
    """Read one file into memory.

    Args:
        path: text (.txt, .jsonl, …, compressed or not), the course's .npz (its array `val`, or its
            only one), .npy, or a token shard (.tok).
        tokenizer: of the model, a key of `TOKENIZER_VOCABULARIES`; None: not known, ids only.
        n_vocab: ids that the model has.
        text_field: field of a JSON or parquet document that holds its text.
        n_tokens: only the first so many; None: all.

    Raises:
        DataError: not such a file, damaged, empty, ids that the model does not have, text without
            a known tokenizer, or its files cannot be had.
    """
    name, pairs = str(path), False
    if path.suffix.lower() in (".npz", ".npy"):
        ids, array = _read_numpy(path)
        name += f", array {array}" if array else ""
    elif path.suffix.lower() == ".tok":
        header, ids = read_shard(path, verify=True)
        if tokenizer is not None and header.tokenizer != tokenizer:
            raise DataError(
                f"{path}: made with tokenizer {header.tokenizer}, the model's is {tokenizer}"
            )
    elif kind_of(path) is None:
        raise DataError(f"{path}: what kind of file is this? Expected {EXPECTED}, .npy or .tok")
    elif tokenizer is None:
        raise DataError(f"{path}: text needs the model's tokenizer: give --tokenizer")
    else:
        ids = _read_text(path, load_tokenizer(tokenizer), text_field)
        pairs = kind_of(path) == "csv" and open_source(str(path), text_field).pairs
        name += f", tokenizer {tokenizer}"
    ids = ids[:n_tokens]
    check_ids(ids, n_vocab, str(path))
    return HeldOut(ids, _bytes_per_token(ids, tokenizer), name, pairs)


def check_ids(ids: IdArray | TokenArray, n_vocab: int, where: str) -> None:
    """Refuse ids that a model does not have, and less than two of them.

    Raises:
        DataError: so it is.
    """
    if len(ids) < 2:
        raise DataError(f"{where}: {len(ids)} tokens; at least 2 are needed to predict one")
    for first in range(0, len(ids), _CHECKED):
        part = ids[first : first + _CHECKED]
        lowest, highest = int(part.min()), int(part.max())
        if lowest < 0 or highest >= n_vocab:
            raise DataError(
                f"{where}: token id {lowest if lowest < 0 else highest}, but the model has ids 0 "
                f"to {n_vocab - 1}: it is of another tokenizer"
            )


def _bytes_per_token(ids: IdArray, tokenizer: str | None) -> float | None:
    if tokenizer is None:
        return None
    try:
        table = load_tokenizer(tokenizer).token_bytes()
    except DataError:  # no network: bits per byte stay unknown, all else works
        return None
    if int(ids.max()) >= len(table):
        return None
    parts = (ids[first : first + _CHECKED] for first in range(0, len(ids), _CHECKED))
    n_bytes = sum(int(table[part].sum(dtype=np.int64)) for part in parts)
    return n_bytes / len(ids) if n_bytes else None


def _read_text(path: Path, tokenizer: Tokenizer, text_field: str) -> Ids:
    if kind_of(path) == "text":
        with named_errors(str(path)):
            raw = b"".join(decompressed(path))
        try:
            text = raw.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: not UTF-8 text (byte {error.start})") from error
        return tokenizer.encode_documents([text])[0][:-1]
    documents = [ids for text in _texts(path, text_field)
                 for ids in tokenizer.encode_documents([text])]  # fmt: skip
    return np.concatenate(documents) if documents else np.empty(0, dtype=np.uint16)


def _texts(path: Path, text_field: str) -> Iterator[str]:
    """Texts of the records of a file; bad ones are left out and said."""
    source = open_source(str(path), text_field)
    n_good, bad = 0, []
    for record in source.records():
        problem = record.problem if record.text is None else _surrogates(record.text)
        if problem:
            bad.append(f"{source.place(record.file, record.record)}: {problem}")
        elif record.text:
            n_good += 1
            yield from record.documents
    if bad and not n_good:
        raise DataError(f"{bad[0]}; no usable record in this file")
    if bad:
        _LOG.warning("%d bad records left out, the first: %s", len(bad), bad[0])


def _surrogates(text: str) -> str | None:
    try:
        text.encode()
    except UnicodeEncodeError:
        return "not Unicode text (lone surrogates)"
    return None


def _read_numpy(path: Path) -> tuple[IdArray, str]:
    """Ids of a .npy file, or of the array `val` (or the only one) of a .npz file; its name."""
    expected = "expected one row of token ids, in an .npz as the array val"
    name = ""
    try:
        with path.open("rb") as raw:
            ids = np.load(raw, allow_pickle=False)
            if isinstance(ids, np.lib.npyio.NpzFile):
                names = ids.files
                name = "val" if len(names) != 1 else names[0]
                if name not in names:
                    found = ", ".join(names) or "none"
                    raise DataError(f"{path}: no array 'val' (arrays: {found[:200]}); {expected}")
                ids = np.asarray(ids[name])
    except DataError:
        raise
    except Exception as error:  # numpy and zipfile have a dozen for a file that is not theirs
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:200]
        raise DataError(f"{path}: damaged or no array of ids ({reason}); {expected}") from error
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise DataError(f"{path}: holds {ids.dtype} of shape {ids.shape}; {expected}")
    return ids, name
