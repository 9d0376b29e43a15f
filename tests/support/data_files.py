"""Text made for the data tests, a small BPE in GPT-2's file format, and the real files if any."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import json
import lzma
import os
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zstandard

from trainer.data.config import DataConfig
from trainer.data.prepare import prepare
from trainer.data.shards.tokens import TokenArray, TokenData

ROOT = Path(__file__).parents[2]
PACK: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".bz2": bz2.compress,
    ".zst": zstandard.compress,
}
GPT2_BASE = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main"


def real_data() -> Path | None:
    """Folder with gpt2/ and web/, from $BUDGETSWEEP_TEST_DATA or beside the repository."""
    chosen = os.environ.get("BUDGETSWEEP_TEST_DATA")
    for folder in [Path(chosen)] if chosen else [ROOT.parent / "shared" / "data"]:
        if (folder / "gpt2" / "vocab.bpe").is_file():
            return folder
    return None


needs_real_data = pytest.mark.skipif(
    real_data() is None, reason="no GPT-2 files: set BUDGETSWEEP_TEST_DATA to a folder with gpt2/"
)


class Evil:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def make_documents(n: int, seed: int = 0, words: int = 60) -> list[str]:
    """Documents of random words, some with characters beyond ASCII, all different."""
    rng = random.Random(seed)
    vocabulary = ["alpha", "Beta", "gamma", "delta", "naïve", "日本", "the", "of", "42", "it's"]
    return [
        f"Document {seed}-{i}. " + " ".join(rng.choices(vocabulary, k=rng.randint(1, words)))
        for i in range(n)
    ]


def write_jsonl(path: Path, documents: list[str]) -> Path:
    lines = (json.dumps({"text": text, "src": "made"}, ensure_ascii=False) for text in documents)
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def tiny_bpe() -> tuple[bytes, bytes]:
    """(vocab.bpe, encoder.json) with a dozen merges, in the format of the published files."""
    printable = [b for b in range(256) if chr(b).isprintable() and chr(b) != " "]
    names = {b: chr(b) for b in printable}
    for i, b in enumerate(b for b in range(256) if b not in names):
        names[b] = chr(256 + i)
    order = printable + [b for b in range(256) if b not in printable]
    encoder = {names[b]: i for i, b in enumerate(order)}
    space = names[ord(" ")]
    merges = [("t", "h"), ("th", "e"), (space, "the"), ("a", "l"), ("p", "h"), ("al", "ph"),
              ("alph", "a"), (space, "alpha"), (space, "a"), ("i", "n"), ("o", "f")]  # fmt: skip
    for first, second in merges:
        encoder[first + second] = len(encoder)
    encoder["<|endoftext|>"] = 50256
    lines = ["#version: 0.2", *(f"{a} {b}" for a, b in merges), ""]
    return "\n".join(lines).encode(), json.dumps(encoder).encode()


def fill_tiktoken_cache(folder: Path, vocab: bytes, encoder: bytes, base: str = GPT2_BASE) -> None:
    """Files under the SHA-1 of their address, where tiktoken looks for them."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in (("vocab.bpe", vocab), ("encoder.json", encoder)):
        (folder / hashlib.sha1(f"{base}/{name}".encode()).hexdigest()).write_bytes(content)


def decode(tokens: TokenArray | np.ndarray) -> list[str]:
    """Texts of byte ids, each ended."""
    texts = bytes(np.where(tokens[:] == 256, 0, tokens[:]).astype(np.uint8)).decode().split("\0")
    assert texts.pop() == ""
    return texts


def prepared(path: Path | str, train: int | None = None, val: int | None = None, **kw) -> TokenData:
    options = {key: kw.pop(key) for key in ("workers", "on_progress", "cache_dir") if key in kw}
    encoding = kw.pop("encoding", "bytes")
    data = DataConfig(source=str(path), **kw)
    return prepare(data, encoding, train_tokens=train, val_tokens=val, **options)


def same(a: TokenData, b: TokenData) -> bool:
    return (a.data_checksum, a.val_checksum, len(a.train), len(a.val), a.exhausted) == (
        b.data_checksum, b.val_checksum, len(b.train), len(b.val), b.exhausted,
    )  # fmt: skip
