"""What several tests of runs begin with; a file that needs another has its own of the same name."""

import http.server
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tests.support.tiny_runs import drive, tiny_config, tiny_data
from trainer.data.shards.tokens import TokenData

# Read when `datasets` is imported; keeps its lock files out of the user's home.
os.environ.setdefault("HF_HOME", tempfile.mkdtemp(prefix="budgetsweep-hf-"))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own, known to this process and its children."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("BUDGETSWEEP_CACHE", str(folder))
    return folder


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Threads that wait for a busy core take far longer than tiny tensors."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def data() -> TokenData:
    """A little text."""
    return tiny_data()


@pytest.fixture(scope="module")
def whole(data: TokenData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted run, with dropout and gradient accumulation."""
    run_dir = tmp_path_factory.mktemp("whole")
    result, _ = drive(tiny_config(), data, run_dir)
    assert result.status == "complete"
    return run_dir


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
