"""Files that appear whole or not at all, and locks between processes."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def atomic_file(path: Path, temporary: Path | None = None) -> Iterator[BinaryIO]:
    """Open a file for writing that takes the name `path` at the end, synced to the disk.

    A reader sees the old file or the new one, never half of it. After an exception nothing is left.
    A missing folder is made.

    Args:
        temporary: name until then, in the same folder; None: one of its own, so that several
            processes may write at once. With a fixed name a killed process leaves one file at most.

    Raises:
        OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if temporary is None:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        temporary, file = Path(name), os.fdopen(handle, "wb")
    else:
        file = temporary.open("wb")
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_bytes_atomically(path: Path, content: bytes) -> None:
    """Write a whole file as `atomic_file` does."""
    with atomic_file(path) as file:
        file.write(content)


def write_text_atomically(path: Path, text: str) -> None:
    """Write a whole file in UTF-8 as `atomic_file` does."""
    write_bytes_atomically(path, text.encode("utf-8"))


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A new folder to fill, which takes the name `path` at the end, its files synced to the disk.

    After an exception nothing is left.

    Raises:
        OSError: it cannot be written, or `path` is neither free nor an empty folder.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as beside:
        temporary = Path(beside, path.name)
        temporary.mkdir()
        yield temporary
        for each in temporary.iterdir():
            with each.open("rb") as file:
                os.fsync(file.fileno())
        temporary.rename(path)


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut, where the system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def file_lock(
    path: Path,
    *,
    seconds: float = -1.0,
    poll_seconds: float = 0.1,
    when_waiting: Callable[[], None] | None = None,
) -> AbstractContextManager[object]:
    """Take a lock between processes; leaving the context, or the process's end, gives it back.

    Args:
        seconds: longest wait; negative: as long as it takes.
        poll_seconds: time between two tries.
        when_waiting: called once if another process holds the lock.

    Raises:
        TimeoutError: another process still holds it.
        OSError: the file cannot be made, or its file system has no locks.
    """
    from filelock import FileLock, Timeout

    path.touch()  # of a missing folder the library would make one
    lock = FileLock(path)
    try:
        return lock.acquire(timeout=0)
    except Timeout:
        if when_waiting is not None:
            when_waiting()
        return lock.acquire(timeout=seconds, poll_interval=poll_seconds)
