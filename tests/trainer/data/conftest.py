"""Fixtures of the data tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.data_files import fill_tiktoken_cache, make_documents, real_data, write_jsonl
from trainer.data import blocks


@pytest.fixture
def gpt2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The published GPT-2 files as TIKTOKEN_CACHE_DIR; for tests with `needs_real_data`."""
    source = real_data()
    assert source is not None
    folder = tmp_path / "tiktoken"
    files = [(source / "gpt2" / name).read_bytes() for name in ("vocab.bpe", "encoder.json")]
    fill_tiktoken_cache(folder, *files)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(folder))
    return source


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 5,000 characters, so that small texts have many."""
    monkeypatch.setattr(blocks, "SMALLEST_BLOCK_CHARS", 5_000)
    monkeypatch.setattr(blocks, "LARGEST_BLOCK_CHARS", 20_000)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "source.jsonl", make_documents(1500))
