"""What a folder of token shards says about itself: `manifest.json`.

The manifest is the only list of what belongs to a prepared text. It is replaced in one step, so a
reader sees the state before or after a change and never between; a shard file that it does not
name does not exist for anybody.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from budgetsweep.errors import DataError
from budgetsweep.files import write_text_atomically

MANIFEST_NAME = "manifest.json"
LOCK_NAME = ".lock"
TOKEN_BYTES_NAME = "token-bytes.tok"
MANIFEST_FORMAT = "budgetsweep tokens"
FORMAT_VERSION = 1
"""Version of shards, manifest, split and order of tokens; another version prepares anew."""


@dataclass(frozen=True)
class ShardEntry:
    """One shard file of a prepared text."""

    file: str
    n_tokens: int
    sha256: str
    """SHA-256 of the shard's payload (little-endian uint16 ids)."""


@dataclass(frozen=True)
class Manifest:
    """State of a prepared folder. Lists are in the order of the tokens."""

    source: str
    description: str
    """One line for people: which text, which tokenizer."""
    identity: str
    """Hash of what decides the tokens: source, text field, tokenizer, validation, version."""
    tokenizer: str
    n_vocab: int
    eot: int
    text_field: str = "text"
    validation: str | None = None
    pairs: bool = False
    """The tokens are `source eot target eot` for each article; a document is then a pair."""
    val_below: int | None = None
    """Documents (pairs: titles) whose 64-bit hash is below this are validation; None: validation is
    separate."""
    revision: str | None = None
    """Commit of a hub data set that every extension stays with."""
    train: tuple[ShardEntry, ...] = ()
    val: tuple[ShardEntry, ...] = ()
    token_bytes: ShardEntry | None = None
    """UTF-8 bytes that each id stands for, as a shard; None: not known."""
    cursor: tuple[int, int] = (0, 0)
    """(file, record) of the source from which the next shard is read."""
    documents: int = 0
    val_documents: int = 0
    dropped_documents: int = 0
    """Read but used for neither side: empty, or kept out of training because of the split."""
    bad_records: int = 0
    bad_examples: tuple[str, ...] = ()
    """The first few bad records by file, line and reason."""
    lowest_hash: int | None = None
    val_frozen: bool = False
    """The first preparation was completed: validation never changes again."""
    exhausted: bool = False
    """The source has no more text."""
    created_utc: str = ""
    updated_utc: str = ""
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def train_tokens(self) -> int:
        """Prepared training tokens."""
        return sum(entry.n_tokens for entry in self.train)

    @property
    def val_tokens(self) -> int:
        """Prepared validation tokens."""
        return sum(entry.n_tokens for entry in self.val)


def save_manifest(folder: Path, manifest: Manifest) -> None:
    """Replace the manifest of `folder` in one step.

    Raises:
        DataError: it cannot be written.
    """
    body = dataclasses.asdict(manifest)
    data = {"format": MANIFEST_FORMAT, "version": FORMAT_VERSION, "checksum": _checksum(body)}
    text = json.dumps({**data, **body}, indent=1, ensure_ascii=False)
    try:
        write_text_atomically(folder / MANIFEST_NAME, text + "\n")
    except OSError as error:
        raise cannot_write(folder / MANIFEST_NAME, error) from error


def load_manifest(folder: Path) -> Manifest:
    """Read the manifest of a prepared folder.

    Raises:
        DataError: there is none, or it is damaged, foreign or of another version.
    """
    path = folder / MANIFEST_NAME
    again = "prepare the text again (budgetsweep data prepare)"
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"{folder}: no {MANIFEST_NAME}, so no prepared text; {again}") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise DataError(f"{path}: damaged, not JSON; delete {folder} and {again}") from error
    if not isinstance(data, dict) or data.get("format") != MANIFEST_FORMAT:
        raise DataError(f"{path}: not a manifest of budgetsweep; {again}")
    if data.get("version") != FORMAT_VERSION:
        raise DataError(
            f"{path}: format version {data.get('version')}, this program reads {FORMAT_VERSION}; "
            f"{again} with this version"
        )
    body = {k: v for k, v in data.items() if k not in ("format", "version", "checksum")}
    if data.get("checksum") != _checksum(body):
        raise DataError(f"{path}: damaged (checksum differs); delete {folder} and {again}")
    return TypeAdapter(Manifest).validate_python(body)


def cannot_write(path: Path, error: OSError) -> DataError:
    """The error for a full disk or a folder of somebody else."""
    return DataError(
        f"{path}: cannot be written ({error.strerror}); what was finished stays, make room and "
        "run the same command again"
    )


def utc_now() -> str:
    """The time, in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _checksum(body: dict[str, Any]) -> str:
    text = json.dumps(body, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
