"""How far a preparation is: what the worker threads count and what is reported. No torch."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from trainer.data.shards.manifest import Manifest

TYPICAL_BYTES_PER_TOKEN = 4.3
"""GPT-2 BPE on English web text; 4.56 measured on news and Wikipedia, less on code."""
TICK_SECONDS = 0.2


@dataclass(frozen=True)
class PrepareProgress:
    """How far a preparation is; several times a second."""

    documents: int
    """Documents tokenised, earlier runs included."""
    tokens: int
    """Training tokens, earlier runs included."""
    wanted_tokens: int | None
    """Training tokens wanted; None: all that the source has."""
    tokens_per_second: float
    """Of this run, validation tokens included."""
    seconds_left: float | None
    """None: not known."""


class PrepareMeter:
    """Counts what the threads do and reports it."""

    def __init__(
        self,
        manifest: Manifest,
        on_progress: Callable[[PrepareProgress], None] | None,
        wanted: int | None,
        n_bytes: int | None = None,
    ) -> None:
        """Args: training tokens wanted and bytes of the source, each None if not known."""
        self._on_progress, self._wanted, self._n_bytes = on_progress, wanted, n_bytes
        self._lock = threading.Lock()
        self._started = time.monotonic()
        self._last = 0.0
        self._documents = manifest.documents + manifest.val_documents
        self._train = manifest.train_tokens
        self._made = self._chars = self._committed = 0

    def count(self, documents: int, train_tokens: int, val_tokens: int) -> None:
        """Called by workers."""
        with self._lock:
            self._documents += documents
            self._train += train_tokens
            self._made += train_tokens + val_tokens

    def add_chars(self, chars: int, n_tokens: int) -> None:
        """A block was committed."""
        self._chars += chars
        self._committed += n_tokens

    def tokens_per_char(self, tokenizer: str) -> float:
        """Measured, or typical before the first block."""
        if self._chars and self._committed:
            return self._committed / self._chars
        return 1.0 if tokenizer == "bytes" else 1 / TYPICAL_BYTES_PER_TOKEN

    def tick(self, manifest: Manifest, force: bool = False) -> None:
        """Report, but not too often."""
        now = time.monotonic()
        if self._on_progress is None or (not force and now - self._last < TICK_SECONDS):
            return
        self._last = now
        rate = self._made / max(now - self._started, 1e-9)
        train = manifest.train_tokens if force else max(self._train, manifest.train_tokens)
        whole: float | None = self._wanted
        if whole is None and self._n_bytes is not None and self._chars:
            whole = self._n_bytes * self._committed / self._chars
        left = None if whole is None or not rate else max(whole - train, 0.0) / rate
        if force:
            left = 0.0
        self._on_progress(PrepareProgress(self._documents, train, self._wanted, rate, left))
