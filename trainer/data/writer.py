"""Run one preparation: read blocks, tokenise them in threads, write shards, keep the manifest.

No torch. See `trainer.data.prepare` for the order of events that makes it safe to kill.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

from budgetsweep.errors import DataError
from trainer.data.blocks import (
    MAX_EXAMPLES,
    VAL_TOKENS,
    Block,
    EncodedBlock,
    SplitRule,
    choose_val_below,
    cut_blocks,
    encode_block,
    nothing_usable,
    split_hash,
)
from trainer.data.shards.manifest import (
    LOCK_NAME,
    TOKEN_BYTES_NAME,
    Manifest,
    ShardEntry,
    save_manifest,
    utc_now,
)
from trainer.data.shards.progress import TICK_SECONDS, TYPICAL_BYTES_PER_TOKEN, PrepareMeter
from trainer.data.shards.tokens import Ids, write_shard
from trainer.data.sources import PrepareJob, Source, open_source, source_class
from trainer.data.tokenizers import load_tokenizer

SEPARATE_VAL_TOKENS = 20_000_000
"""Most tokens taken from a separate validation text."""


@dataclass(frozen=True)
class _Written:
    """What a worker made of a block."""

    train: ShardEntry | None
    val: ShardEntry | None
    found: EncodedBlock


class Preparation:
    """One preparation of one folder, from a source of documents."""

    def __init__(self, job: PrepareJob, source: Source) -> None:
        self.data, self.folder, self.workers = job.data, job.folder, job.workers
        self._wanted_train = job.train_tokens
        self._least_val = max(job.val_tokens or 0, 1)
        self._wanted_val = max(job.val_tokens or 0, VAL_TOKENS)
        self.tokenizer = load_tokenizer(job.tokenizer)
        self.source = source.open()
        if job.manifest is not None and job.manifest.pairs != self.source.pairs:
            raise DataError(
                f"{self.folder}: prepared from other columns of {source.name}; delete this folder "
                "and prepare the text again"
            )
        for path in self.folder.glob(".*"):  # half-written files of a killed process
            if path.name != LOCK_NAME:
                path.unlink()
        self.manifest = job.manifest or self._first_manifest(job.identity)
        self._stop = threading.Event()
        self._meter = PrepareMeter(
            self.manifest, job.on_progress, job.train_tokens, self.source.n_bytes
        )

    def _first_manifest(self, identity: str) -> Manifest:
        table = write_shard(
            self.folder / TOKEN_BYTES_NAME,
            self.tokenizer.token_bytes(),
            tokenizer=self.tokenizer.name,
            split="token_bytes",
        )
        return Manifest(
            source=self.data.source,
            description=f"{self.source.description}, tokenizer {self.tokenizer.name}",
            identity=identity,
            tokenizer=self.tokenizer.name,
            n_vocab=self.tokenizer.n_vocab,
            eot=self.tokenizer.eot,
            text_field=self.data.text_field,
            validation=self.data.validation,
            pairs=self.source.pairs,
            revision=self.source.revision,
            token_bytes=table,
            created_utc=utc_now(),
            versions={name: version(name) for name in ("datasets", "tiktoken", "numpy")},
        )

    def run(self) -> Manifest:
        """Prepare until there are as many training tokens as wanted, or no more text.

        Raises:
            DataError: nothing usable, no space, or the network is gone. What was finished stays.
        """
        if self.data.validation is not None and not self.manifest.val:
            self._prepare_validation(self.data.validation)
        if self.data.validation is None and self.manifest.val_below is None:
            self._save(val_below=choose_val_below(self._expected_tokens(), self._wanted_val))
        exhausted = self._prepare_train()
        if exhausted and self._one_side_is_empty():
            # Few documents, and chance put them all on one side: the lowest hash is validation.
            if self.manifest.val_below is None or self.manifest.lowest_hash is None:
                raise self._too_few_documents()
            self._save(
                train=(), val=(), cursor=(0, 0), documents=0, val_documents=0, dropped_documents=0,
                bad_records=0, bad_examples=(), val_below=self.manifest.lowest_hash + 1,
            )  # fmt: skip
            exhausted = self._prepare_train()
            if self._one_side_is_empty():
                raise self._too_few_documents()
        self._save(val_frozen=True, exhausted=exhausted)
        self._meter.tick(self.manifest, force=True)
        return self.manifest

    def _expected_tokens(self) -> float | None:
        train_tokens = self._wanted_train
        if self.source.n_bytes is None:
            return train_tokens
        per_token = 1.0 if self.tokenizer.name == "bytes" else TYPICAL_BYTES_PER_TOKEN
        whole = self.source.n_bytes / per_token
        return whole if train_tokens is None else min(whole, train_tokens)

    def _prepare_train(self) -> bool:
        """Append training blocks until there are enough; True: the source has no more."""
        rule = SplitRule(self.manifest.val_below, self._held_out())
        separate = self.data.validation is not None

        def wants_val() -> bool:
            frozen = separate or self.manifest.val_frozen
            return not frozen and self.manifest.val_tokens < self._wanted_val

        def enough(pending_chars: int) -> bool:
            m, wanted = self.manifest, self._wanted_train
            coming = pending_chars * self._meter.tokens_per_char(self.tokenizer.name)
            if wanted is None or m.train_tokens + coming < wanted:
                return False
            return not wants_val() or m.val_tokens >= self._least_val

        def commit(block: Block, written: _Written) -> None:
            m, found = self.manifest, written.found
            assert written.train is not None
            kept = (written.val,) if written.val is not None and wants_val() else ()
            n_kept = found.val_documents if kept else 0
            lowest = [h for h in (m.lowest_hash, found.lowest_hash) if h is not None]
            self._save(
                train=(*m.train, written.train),
                val=m.val + kept,
                cursor=block.end,
                documents=m.documents + found.documents,
                val_documents=m.val_documents + n_kept,
                dropped_documents=(
                    m.dropped_documents + found.dropped_documents + found.val_documents - n_kept
                ),
                bad_records=m.bad_records + block.bad_records,
                bad_examples=(*m.bad_examples, *block.bad_examples)[:MAX_EXAMPLES],
                lowest_hash=min(lowest, default=None),
            )

        blocks = cut_blocks(self.source, self.manifest.cursor, len(self.manifest.train), self._tick)
        return self._pipeline(blocks, rule, wants_val, enough, commit)

    def _prepare_validation(self, name: str) -> None:
        """Tokenise a separate validation text; its documents are then kept out of training."""
        if not source_class(name).has_end:
            raise DataError(f"{name}: no separate validation text; give a path")
        source = open_source(name, self.data.text_field)
        if source.pairs != self.source.pairs:
            training = self.source.description
            with_pairs, without = (name, training) if source.pairs else (training, name)
            raise DataError(
                f"{without}: no pairs, but {with_pairs} has them; training and validation text "
                "both need the columns headline, title, text (.csv), or neither"
            )
        found: list[tuple[Block, _Written]] = []

        def commit(block: Block, written: _Written) -> None:
            found.append((block, written))

        def enough(_pending_chars: int) -> bool:
            return sum(len(written.found.val) for _, written in found) >= SEPARATE_VAL_TOKENS

        blocks = cut_blocks(source, tick=self._tick)
        self._pipeline(blocks, SplitRule(only_val=True), lambda: True, enough, commit)
        entries = [written.val for _, written in found if written.val is not None]
        bad_records = sum(block.bad_records for block, _ in found)
        examples = [example for block, _ in found for example in block.bad_examples]
        if not entries:
            raise nothing_usable(name, bad_records, examples)
        self._save(
            val=tuple(entries),
            val_documents=sum(written.found.val_documents for _, written in found),
            dropped_documents=sum(written.found.dropped_documents for _, written in found),
            bad_records=bad_records,
            bad_examples=tuple(examples[:MAX_EXAMPLES]),
        )

    def _held_out(self) -> frozenset[int]:
        """Hashes of a separate validation text."""
        if self.data.validation is None:
            return frozenset()
        records = open_source(self.data.validation, self.data.text_field).records()
        return frozenset(h for h in map(split_hash, records) if h is not None)

    def _one_side_is_empty(self) -> bool:
        m = self.manifest
        separate = self.data.validation is not None
        if m.documents == 0 and (m.dropped_documents == 0 if separate else m.val_documents == 0):
            raise nothing_usable(self.source.description, m.bad_records, m.bad_examples)
        return m.train_tokens == 0 or m.val_tokens == 0

    def _too_few_documents(self) -> DataError:
        what = "title" if self.source.pairs else "document"
        if self.data.validation is not None:
            return DataError(
                f"{self.source.description}: every {what} is also in {self.data.validation}, so "
                "nothing is left to train on"
            )
        return DataError(
            f"{self.source.description}: only one {what}, so nothing is left to validate on; "
            "give more text, or a separate one as data.validation"
        )

    def _save(self, **changes: Any) -> None:
        self.manifest = replace(self.manifest, **changes, updated_utc=utc_now())
        save_manifest(self.folder, self.manifest)

    def _tick(self) -> None:
        self._meter.tick(self.manifest)

    def _pipeline(
        self,
        blocks: Generator[Block],
        rule: SplitRule,
        wants_val: Callable[[], bool],
        enough: Callable[[int], bool],
        commit: Callable[[Block, _Written], None],
    ) -> bool:
        """Blocks through the worker threads; commits in order. True: the source has ended."""
        pending: deque[tuple[Block, Future[_Written | None]]] = deque()
        ended = False
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="tokenise")
        try:
            while not enough(0):
                while not ended and len(pending) <= self.workers:
                    if pending and enough(sum(block.n_chars for block, _ in pending)):
                        break
                    block = next(blocks, None)
                    if block is None:
                        ended = True
                        break
                    pending.append((block, pool.submit(self._work, block, rule, wants_val())))
                if not pending:
                    return True
                block, future = pending.popleft()
                while not future.done():
                    wait([future], timeout=TICK_SECONDS)
                    self._tick()
                written = future.result()
                assert written is not None
                commit(block, written)
                self._meter.add_chars(
                    block.n_chars, len(written.found.train) + len(written.found.val)
                )
                self._tick()
            return False
        finally:
            self._stop.set()
            blocks.close()
            pool.shutdown(cancel_futures=True)
            self._stop.clear()

    def _work(self, block: Block, rule: SplitRule, want_val: bool) -> _Written | None:
        """Tokenise a block and write its shards. Runs in a worker thread."""
        found = encode_block(block, self.tokenizer, rule, want_val, self._stop, self._meter.count)
        if found is None:
            return None

        def write(split: str, ids: Ids) -> ShardEntry:
            path = self.folder / f"{split}-{block.index:05d}.tok"
            return write_shard(path, ids, tokenizer=self.tokenizer.name, split=split)

        val = write("val", found.val) if len(found.val) else None
        train = None if rule.only_val else write("train", found.train)
        return _Written(train, val, found)
