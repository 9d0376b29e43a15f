"""Token ids of one file, whole, to measure a model on: text of any kind, or ids. No torch.

A plain text file is tokenised as it is, nothing added. A record of JSON or parquet is a document:
an end-of-text id follows each, as in training.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from budgetsweep.errors import DataError
from trainer.data.shards.tokens import Ids, TokenArray
from trainer.data.sources import open_source
from trainer.data.sources.course_npz import IdArray, check_ids, read_ids
from trainer.data.sources.local_files import EXPECTED, decompressed, kind_of
from trainer.data.sources.records import named_errors
from trainer.data.tokenizers import Tokenizer, load_tokenizer

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
        path: text (.txt, .jsonl, …, compressed or not), an .npz (its array `val`) or .npy.
        tokenizer: of the model, a key of `TOKENIZER_VOCABULARIES`; None: not known, ids only.
        n_tokens: only the first so many; None: all.

    Raises:
        DataError: not such a file, damaged, empty, ids that the model does not have, text without
            a known tokenizer, or its files cannot be had.
    """
    name, pairs = str(path), False
    ids: IdArray
    if path.suffix.lower() in (".npz", ".npy"):
        ids = read_ids(path, "val")
    elif kind_of(path) is None:
        raise DataError(f"{path}: what kind of file is this? Expected {EXPECTED} or .npy")
    elif tokenizer is None:
        raise DataError(f"{path}: text needs the model's tokenizer: give --tokenizer")
    else:
        known = load_tokenizer(tokenizer)
        name += f", tokenizer {tokenizer}"
        if kind_of(path) == "text":
            ids = _whole_text(path, known)
        else:
            ids, pairs = _documents(path, known, text_field)
    ids = ids[:n_tokens]
    check_ids(ids, n_vocab, str(path))
    return HeldOut(ids, _bytes_per_token(ids, tokenizer), name, pairs)


def _bytes_per_token(ids: IdArray, tokenizer: str | None) -> float | None:
    if tokenizer is None:
        return None
    try:
        table = load_tokenizer(tokenizer).token_bytes()
    except DataError:  # no network: bits per byte stay unknown, all else works
        return None
    if int(ids.max()) >= len(table):
        return None
    n_bytes = int(table[ids].sum(dtype=np.int64))
    return n_bytes / len(ids) if n_bytes else None


def _whole_text(path: Path, tokenizer: Tokenizer) -> Ids:
    with named_errors(str(path)):
        raw = b"".join(decompressed(path))
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text (byte {error.start})") from error
    return tokenizer.encode_documents([text])[0][:-1]


def _documents(path: Path, tokenizer: Tokenizer, text_field: str) -> tuple[Ids, bool]:
    """Ids of the records of a file, and whether they are pairs; bad ones are left out and said."""
    source = open_source(str(path), text_field)
    found, bad = [np.empty(0, dtype=np.uint16)], []
    for record in source.records():
        found += tokenizer.encode_documents(record.documents)
        if record.problem:
            bad.append(f"{source.place(record.file, record.record)}: {record.problem}")
    if bad and len(found) == 1:
        raise DataError(f"{bad[0]}; no usable record in this file")
    if bad:
        _LOG.warning("%d bad records left out, the first: %s", len(bad), bad[0])
    return np.concatenate(found), source.pairs
