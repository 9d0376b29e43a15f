"""Documents to blocks, blocks to training and validation tokens. No torch.

A block is a run of consecutive records of a source that becomes one shard. Where blocks end depends
on the source alone, never on how many tokens were asked for, how many threads worked or when a run
was killed: so an extended or resumed preparation has the same shards as one in a single go.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Generator
from dataclasses import dataclass

import numpy as np

from budgetsweep.errors import DataError
from trainer.data.shards.tokens import Ids
from trainer.data.sources import Cursor, Record, Source
from trainer.data.sources.wikihow import split_key
from trainer.data.tokenizers import Tokenizer

HASH_RANGE = 1 << 64
SMALLEST_BLOCK_CHARS = 1 << 20
LARGEST_BLOCK_CHARS = 1 << 24
_BLOCKS_A_SIZE = 4
MAX_EXAMPLES = 5
_HOPELESS_RECORDS = 1000
_DOCUMENTS_A_CALL = 64

VAL_TOKENS = 2_000_000
"""Validation tokens aimed at. 2 M tokens are some 2,000 windows of 1,024: about 0.01 nats."""
LARGEST_VAL_SHARE = 1 / 20
SMALLEST_VAL_SHARE = 1 / 100


@dataclass(frozen=True)
class Block:
    """Consecutive records of a source."""

    index: int
    end: Cursor
    records: list[Record]
    """The good ones."""
    n_chars: int
    bad_records: int
    bad_examples: list[str]


@dataclass(frozen=True)
class SplitRule:
    """Which side a document is on: a pure function of its text, of a pair of its title."""

    val_below: int | None = None
    """Hashes below this are validation; None: none are."""
    held_out: frozenset[int] = frozenset()
    """Hashes of a separate validation text, kept out of training."""
    only_val: bool = False
    """Every document is validation (the separate text itself)."""


@dataclass(frozen=True)
class EncodedBlock:
    """Tokens of a block, by side, and what was found in it."""

    train: Ids
    val: Ids
    documents: int
    """Training documents; a pair counts as one."""
    val_documents: int
    dropped_documents: int
    lowest_hash: int | None


def document_hash(text: str) -> int:
    """64-bit BLAKE2b of the UTF-8 text; the same on every machine and in every version."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def split_hash(record: Record) -> int | None:
    """What decides the side of a record: the hash of its text, of a pair that of its title.

    None: it is empty or bad.
    """
    documents = record.documents
    if not documents or documents[-1].isspace():
        return None
    return document_hash(documents[0] if record.source is None else split_key(documents[0]))


def choose_val_below(expected_tokens: float | None, wanted_val_tokens: int) -> int:
    """Threshold of `document_hash` below which documents are validation.

    It gives the share that is wanted of what is expected (None: not known), but 1/100 to 1/20.
    """
    share = wanted_val_tokens / expected_tokens if expected_tokens else SMALLEST_VAL_SHARE
    share = min(max(share, SMALLEST_VAL_SHARE), LARGEST_VAL_SHARE)
    return int(share * HASH_RANGE)


def block_chars(index: int) -> int:
    """Characters that close block `index`: 1 Mi for the first four, doubling every four to 16 Mi.

    Small sources then still have work for several threads, large ones few files.
    """
    return min(SMALLEST_BLOCK_CHARS << (index // _BLOCKS_A_SIZE), LARGEST_BLOCK_CHARS)


def cut_blocks(
    source: Source, start: Cursor = (0, 0), index: int = 0, tick: Callable[[], None] | None = None
) -> Generator[Block]:
    """Blocks of a source from `start` on, the `end` of the block before; calls `tick` now and then.

    Raises:
        DataError: the first thousand records are all bad, or the source cannot be read.
    """
    records: list[Record] = []
    examples: list[str] = []
    n_chars = bad = 0
    hopeless = index == 0
    end = start
    for seen, record in enumerate(source.records(start)):
        if tick is not None and seen % 256 == 0:
            tick()
        if record.text is not None:
            hopeless = False
            records.append(record)
            n_chars += len(record.text) + len(record.source or "")
        else:
            bad += 1
            if len(examples) < MAX_EXAMPLES:
                examples.append(f"{source.place(record.file, record.record)} {record.problem}")
            if hopeless and bad >= _HOPELESS_RECORDS:
                raise nothing_usable(source.description, bad, examples)
        if record.next is not None:
            end = record.next
            if n_chars >= block_chars(index):
                yield Block(index, end, records, n_chars, bad, examples)
                records, examples = [], []
                n_chars = bad = 0
                index += 1
    if records or bad:
        yield Block(index, end, records, n_chars, bad, examples)


def nothing_usable(what: str, bad_records: int, examples: list[str] | tuple[str, ...]) -> DataError:
    """The error for a source without a single good record."""
    if not bad_records:
        return DataError(f"{what}: no text in it (empty)")
    hint = "; set data.text_field to one of them" if "; fields: " in examples[0] else ""
    return DataError(
        f"{what}: none of {bad_records} records can be used; the first: {examples[0]}{hint}"
    )


def encode_block(
    block: Block,
    tokenizer: Tokenizer,
    rule: SplitRule,
    want_val: bool,
    stop: threading.Event,
    count: Callable[[int, int, int], None],
) -> EncodedBlock | None:
    """Tokens of a block; runs in a worker thread.

    Args:
        want_val: tokenise validation documents; else they are dropped.
        stop: give up and return None when it is set.
        count: called with documents, training tokens and validation tokens, as they are made.
    """
    sides: dict[str, list[list[str]]] = {"train": [], "val": []}
    dropped = 0
    hashes: list[int] = []
    for record in block.records:
        digest = split_hash(record)
        if digest is None:
            dropped += 1
            continue
        hashes.append(digest)
        is_val = rule.only_val or (rule.val_below is not None and digest < rule.val_below)
        if digest in rule.held_out or (is_val and not want_val):
            dropped += 1
        else:
            sides["val" if is_val else "train"].append(record.documents)
    ids: dict[str, Ids] = {}
    for side, kept in sides.items():
        parts: list[Ids] = []
        for first in range(0, len(kept), _DOCUMENTS_A_CALL):
            if stop.is_set():
                return None
            chunk = kept[first : first + _DOCUMENTS_A_CALL]
            made = tokenizer.encode_documents([text for documents in chunk for text in documents])
            n_tokens = sum(map(len, made))
            count(len(chunk), *((n_tokens, 0) if side == "train" else (0, n_tokens)))
            parts += made
        ids[side] = np.concatenate(parts) if parts else np.empty(0, dtype=np.uint16)
    return EncodedBlock(
        train=ids["train"],
        val=ids["val"],
        documents=len(sides["train"]),
        val_documents=len(sides["val"]),
        dropped_documents=dropped,
        lowest_hash=min(hashes, default=None),
    )
