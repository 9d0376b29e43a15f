"""Checkpoints of a run: atomic, checksummed, the last two kept.

A file is a header (magic and SHA-256 of the payload) and what `torch.save` writes. It is
written beside its final name, synced and renamed, so that it appears whole or not at all, and it
is read back with `weights_only`, so that it can hold nothing but tensors and plain data. The
checksum is taken while writing: a checkpoint costs no memory of its own.

torch is imported where tensors are written or read, so that a dispatcher can look for checkpoints
without it.
"""

from __future__ import annotations

import hashlib
import logging
import pickle
import re
from pathlib import Path
from typing import Any, BinaryIO, cast

from budgetsweep.errors import CheckpointError
from budgetsweep.files import atomic_file, sync_folder
from trainer.config import RunConfig
from trainer.identity import Identity, digest, identity

MAGIC = b"BSCKPT02"
_HEADER_BYTES = len(MAGIC) + 32
_NAME = re.compile(r"checkpoint-(\d+)\.pt")
_KEPT = 2
_TEMPORARY = ".checkpoint.tmp"

logger = logging.getLogger("budgetsweep")


def run_hash(config: RunConfig) -> str:
    """Equal for configurations that can continue from the same checkpoint."""
    return digest(identity(RunConfig, config.to_dict(), Identity.CHECKPOINT))


def checkpoint_files(run_dir: Path) -> list[tuple[int, Path]]:
    """(step, path) of the checkpoints in a run's folder, newest first; whole or damaged."""
    if not run_dir.is_dir():
        return []
    found = [(_NAME.fullmatch(path.name), path) for path in run_dir.iterdir()]
    return sorted(((int(m[1]), path) for m, path in found if m), reverse=True)


def save(run_dir: Path, state: dict[str, Any], step: int) -> Path:
    """Write a checkpoint, `config_hash` in its state, and remove those no longer needed.

    Raises:
        CheckpointError: it cannot be written; nothing half-written is left and the earlier
            checkpoints stay.
    """
    path = run_dir / f"checkpoint-{step:08d}.pt"
    try:
        with atomic_file(path, path.with_name(_TEMPORARY)) as file:
            file.write(bytes(_HEADER_BYTES))
            checksum = write_tensors(state, file)
            file.seek(0)
            file.write(MAGIC + checksum)
        sync_folder(path.parent)
    except OSError as error:
        raise cannot_write(path, error) from error
    _remove_old(run_dir, step)
    return path


def write_tensors(state: dict[str, Any], file: BinaryIO) -> bytes:
    """`torch.save` into an open file; the SHA-256 of what was written.

    Raises:
        OSError: the file cannot take it (torch itself reports some of these as RuntimeError).
    """
    import torch

    writer = _HashingWriter(file)
    try:
        torch.save(state, cast(BinaryIO, writer))
    except RuntimeError:
        if writer.error is not None:
            raise writer.error from None
        raise
    return writer.digest.digest()


def load_latest(run_dir: Path, config_hash: str) -> dict[str, Any] | None:
    """The newest checkpoint that is whole, on the CPU; None when there is none.

    A damaged one is named in a warning and passed over.

    Raises:
        CheckpointError: the checkpoint is not of the configuration with this `run_hash`.
    """
    files = checkpoint_files(run_dir)
    for _, path in files:
        try:
            state = _read(path)
        except CheckpointError as error:
            logger.warning("%s; passing it over", error)
            continue
        if state.get("config_hash") != config_hash:
            raise CheckpointError(
                f"{path} belongs to another configuration: give another output_dir, or delete "
                f"{run_dir} to start over"
            )
        return state
    if files:
        logger.warning("%s: no checkpoint can be read; the run starts over", run_dir)
    return None


def remove_checkpoints(run_dir: Path) -> None:
    """Delete all checkpoints of a run."""
    for _, path in checkpoint_files(run_dir):
        path.unlink(missing_ok=True)
    (run_dir / _TEMPORARY).unlink(missing_ok=True)


def cannot_write(path: Path, error: OSError) -> CheckpointError:
    """The one line that a user sees when a run's file cannot be written."""
    return CheckpointError(
        f"{path}: cannot be written ({error.strerror or error}); make room or fix the "
        "permissions, then run the same command again: it continues from the last checkpoint"
    )


class _HashingWriter:
    """A file-like object that takes the SHA-256 of what passes through."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.digest = hashlib.sha256()
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self._file.flush()


def _read(path: Path) -> dict[str, Any]:
    """The state in `path`, checked in full before any of it is interpreted."""
    import torch

    try:
        with path.open("rb") as file:
            _check(path, file)
            file.seek(_HEADER_BYTES)
            state = torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror})") from error
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise CheckpointError(f"{path} holds something else than tensors and numbers") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} is no checkpoint of a run")
    return state


def _check(path: Path, file: BinaryIO) -> None:
    """Raise `CheckpointError` where an open file is not just what was written."""
    header = file.read(_HEADER_BYTES)
    if not header.startswith(MAGIC):
        raise CheckpointError(f"{path} is damaged or no checkpoint of budgetsweep")
    if hashlib.file_digest(file, "sha256").digest() != header[len(MAGIC) :]:  # type: ignore[arg-type]
        raise CheckpointError(f"{path} is damaged (its checksum differs)")


def _remove_old(run_dir: Path, step: int) -> None:
    """Keep `step` and the one before it; later ones are of a history that was given up."""
    past = [(s, path) for s, path in checkpoint_files(run_dir) if s <= step]
    kept = {path for _, path in past[:_KEPT]}
    for _, path in checkpoint_files(run_dir):
        if path not in kept:
            path.unlink(missing_ok=True)
