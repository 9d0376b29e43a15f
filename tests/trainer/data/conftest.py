"""Fixtures of the data tests."""

from __future__ import annotations

import http.server
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.data_files import fill_tiktoken_cache, make_documents, real_data, write_jsonl
from trainer.data import blocks

# Read when `datasets` is imported; keeps its lock files out of the user's home.
os.environ.setdefault("HF_HOME", tempfile.mkdtemp(prefix="budgetsweep-hf-"))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own, known to this process and its children."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("BUDGETSWEEP_CACHE", str(folder))
    return folder


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
def serve() -> Iterator[Callable[[type[http.server.BaseHTTPRequestHandler]], str]]:
    """Start HTTP servers on localhost; gives each one's address."""
    servers: list[http.server.ThreadingHTTPServer] = []

    def start(handler: type[http.server.BaseHTTPRequestHandler]) -> str:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 5,000 characters, so that small texts have many."""
    monkeypatch.setattr(blocks, "SMALLEST_BLOCK_CHARS", 5_000)
    monkeypatch.setattr(blocks, "LARGEST_BLOCK_CHARS", 20_000)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "source.jsonl", make_documents(1500))
