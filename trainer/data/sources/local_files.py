"""Which local files a source means, and what identifies them. No torch."""

from __future__ import annotations

import bz2
import glob
import gzip
import lzma
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from budgetsweep.errors import DataError

Kind = Literal["text", "json", "parquet", "csv"]

KINDS: dict[str, Kind] = {
    ".txt": "text",
    ".text": "text",
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
    ".parquet": "parquet",
    ".csv": "csv",
}
PIECE_BYTES = 1 << 20
"""Read at a time."""
COMPRESSIONS = (".gz", ".zst", ".xz", ".bz2")
EXPECTED = ".txt, .jsonl, .json, .csv (each also .gz, .zst, .xz or .bz2), .parquet, or tokens.npz"
_TEXT_BYTES = {".gz": 2.6, ".zst": 2.8, ".xz": 3.6, ".bz2": 3.4}
"""Bytes of text per compressed byte (English web text, *assumption* within a factor of 1.5)."""

# The words that `datasets` takes for the name of another split.
_HELD_OUT = re.compile(r"(?:^|[\W_\d])(?:validation|valid|dev|val|testing|test|eval|evaluation)"
                       r"(?:[\W_\d]|$)", re.IGNORECASE)  # fmt: skip
_TRAINING = re.compile(r"(?:^|[\W_\d])(?:train|training)(?:[\W_\d]|$)", re.IGNORECASE)


@dataclass(frozen=True)
class LocalFile:
    """One file of a source."""

    path: Path
    kind: Kind
    size: int
    mtime_ns: int

    @property
    def text_bytes(self) -> int:
        """About how many bytes of text it holds."""
        return round(self.size * _TEXT_BYTES.get(self.path.suffix.lower(), 1.0))


def kind_of(path: Path) -> Kind | None:
    """Kind of a file by its name; None: not one that is read."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSIONS:
        kind = KINDS.get(suffixes[-2]) if len(suffixes) > 1 else None
        return None if kind == "parquet" else kind
    return KINDS.get(suffixes[-1]) if suffixes else None


def find_files(source: str) -> tuple[list[LocalFile], int]:
    """Files of a path, folder or glob pattern, sorted, and how many of other splits are left out.

    In a folder or pattern, hidden files and files of other kinds are passed over, CSV files too
    where there are files of other kinds (they may be anything), and where some names say `train`,
    those that say `validation`, `test` and the like are left out.

    Raises:
        DataError: nothing there, or nothing that can be read.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return _chosen(source, path, (p for p in path.rglob("*") if _visible(p, path)))
    if path.exists():
        kind = kind_of(path)
        if kind is None:
            raise DataError(f"{source}: what kind of file is this? Expected {EXPECTED}")
        return [local_file(path, kind)], 0
    if glob.has_magic(source):
        matches = glob.glob(str(path), recursive=True)  # noqa: PTH207 - Path.glob refuses absolute
        if not matches:
            raise DataError(f"{source}: no file matches this pattern")
        return _chosen(source, None, (Path(match) for match in matches))
    raise DataError(
        f"{source}: no such file or folder; expected c4, demo, hub:owner/name, or a path of "
        f"{EXPECTED}"
    )


def _visible(path: Path, root: Path) -> bool:
    return not any(part.startswith(".") for part in path.relative_to(root).parts)


def _chosen(source: str, root: Path | None, paths: Iterable[Path]) -> tuple[list[LocalFile], int]:
    files = []
    for path in sorted(paths, key=lambda p: p.as_posix()):
        kind = kind_of(path)
        if kind is not None and path.is_file():
            files.append(local_file(path, kind))
    if any(file.kind != "csv" for file in files):
        files = [file for file in files if file.kind != "csv"]
    if not files:
        raise DataError(f"{source}: no file in it that can be read; expected {EXPECTED}")
    names = {
        f: f.path.relative_to(root.absolute()).as_posix() if root else f.path.name for f in files
    }
    if not any(_TRAINING.search(name) for name in names.values()):
        return files, 0
    kept = [f for f in files if not _HELD_OUT.search(names[f]) or _TRAINING.search(names[f])]
    return kept, len(files) - len(kept)


def local_file(path: Path, kind: Kind) -> LocalFile:
    """One file.

    Raises:
        DataError: it cannot be read.
    """
    try:
        status = path.stat()
        with path.open("rb"):
            pass
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    return LocalFile(path.absolute(), kind, status.st_size, status.st_mtime_ns)


def decompressed(path: Path) -> Iterator[bytes]:
    """Bytes of a plain or compressed file, a piece at a time.

    Raises:
        EOFError: it ends in the middle.
        Exception: whatever gzip, bz2, lzma and zstandard raise for a damaged file.
    """
    if path.suffix.lower() == ".zst":
        yield from _zstandard_pieces(path)
        return
    openers: dict[str, Any] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
    with openers.get(path.suffix.lower(), open)(path, "rb") as file:
        while piece := file.read(PIECE_BYTES):
            yield piece


def _zstandard_pieces(path: Path) -> Iterator[bytes]:
    """Frame by frame: the library's own reader ends quietly where a cut file ends."""
    import zstandard

    frame = None
    with path.open("rb") as file:
        while raw := file.read(PIECE_BYTES):
            while raw:
                if frame is None or frame.eof:
                    frame = zstandard.ZstdDecompressor().decompressobj()
                yield frame.decompress(raw)
                raw = frame.unused_data if frame.eof else b""
    if frame is not None and not frame.eof:
        raise EOFError
