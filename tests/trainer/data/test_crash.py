"""Other processes: killed at any moment, two at once, a disk that fills up."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import signal
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from tests.support.crash_child import BLOCK_CHARS, prepare_source
from tests.support.data_files import make_documents, write_jsonl
from trainer.data import blocks
from trainer.data.cache import folder_for, locked
from trainer.data.config import DataConfig
from trainer.data.prepare import prepare
from trainer.data.shards.manifest import load_manifest
from trainer.data.shards.tokens import TokenData, open_tokens

pytestmark = pytest.mark.slow

PATIENCE_SECONDS = 60.0
Start = Callable[..., tuple[BaseProcess, Path]]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "source.jsonl", make_documents(4000))


@pytest.fixture
def start(tmp_path: Path, source: Path, cache: Path) -> Start:
    """Start a process that prepares the source; gives it and the file of what it says."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.support.crash_child"])
    numbers = itertools.count()

    def start(pause: float = 0.0, limit: int = 0) -> tuple[BaseProcess, Path]:
        said = tmp_path / f"said-{next(numbers)}.txt"
        said.touch()
        arguments = (str(source), str(cache), str(said), pause, limit)
        process = context.Process(target=prepare_source, args=arguments, daemon=True)
        process.start()
        return process, said

    return start


def finish(started: tuple[BaseProcess, Path]) -> list[str]:
    """Wait for the end; the lines that it said."""
    process, said = started
    process.join(PATIENCE_SECONDS)
    assert process.exitcode == 0, said.read_text()
    return said.read_text().splitlines()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def facts(data: TokenData) -> list[object]:
    return [data.data_checksum, data.val_checksum, len(data.train), len(data.val)]


@pytest.fixture
def folder(source: Path) -> Path:
    return folder_for(DataConfig(source=str(source)), "bytes")


@pytest.fixture
def whole(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What an undisturbed preparation gives."""
    monkeypatch.setattr(blocks, "SMALLEST_BLOCK_CHARS", BLOCK_CHARS)
    monkeypatch.setattr(blocks, "LARGEST_BLOCK_CHARS", BLOCK_CHARS)
    data = prepare(
        DataConfig(source=str(source)), "bytes", train_tokens=None, val_tokens=None,
        cache_dir=tmp_path / "undisturbed",
    )  # fmt: skip
    assert len(load_manifest(data.folder).train) > 25
    return facts(data)


def test_killed_at_any_moment_the_result_is_the_same(
    start: Start, folder: Path, whole: list[object]
):
    def shards() -> int:
        return len(load_manifest(folder).train) if (folder / "manifest.json").exists() else -1

    for wanted, delay in ((0, 0.0), (2, 0.013), (5, 0.037), (9, 0.029)):
        before = shards()
        process, said = start(pause=0.08)
        until(lambda wanted=wanted: shards() >= wanted)
        time.sleep(delay)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL, said.read_text()  # before the end
        assert shards() >= max(before, wanted)  # finished shards stay
        assert not load_manifest(folder).val_frozen
    assert json.loads(finish(start())[-1]) == whole
    assert not [p for p in folder.glob(".*") if p.name != ".lock"]
    open_tokens(folder, verify=True)


def test_two_at_once_make_it_once(start: Start, folder: Path, whole: list[object]):
    both = [start(pause=0.02), start()]
    assert [json.loads(finish(one)[-1]) for one in both] == [whole, whole]
    assert facts(open_tokens(folder, verify=True)) == whole


def test_the_second_says_once_that_it_waits(start: Start, folder: Path):
    line = f"{folder}: another process is preparing this text; waiting for it"
    with locked(folder):
        process, said = start()
        until(lambda: said.read_text() == line + "\n")
        time.sleep(0.5)
        assert process.is_alive()
    lines = finish((process, said))
    assert lines[0] == line
    assert len(lines) == 2
    assert json.loads(lines[1])


@pytest.mark.parametrize("limit", [600, 20_000])
def test_a_full_disk_is_one_line_and_can_be_continued(
    start: Start, whole: list[object], limit: int
):
    lines = finish(start(limit=limit))
    assert len(lines) == 1
    assert lines[0].startswith("DataError: ")
    assert "cannot be written (File too large); what was finished stays, make room" in lines[0]
    assert json.loads(finish(start())[-1]) == whole
