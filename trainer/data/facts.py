"""What is known of a run's data without reading them: sizes, checksums, a line for people."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class DataFacts:
    """The training and validation data of a study; a size that is None has no limit or none."""

    description: str
    """One line for screens and reports."""
    data_checksum: str
    """At most 64 characters; losses of runs with other checksums cannot be compared."""
    val_checksum: str
    train_tokens: int | None = None
    val_tokens: int | None = None
    train_pairs: int | None = None
    """Pairs of source and target; only an encoder-decoder needs them."""
    val_pairs: int | None = None
    bytes_per_token: float | None = None
    """UTF-8 bytes per validation token, for bits per byte."""
