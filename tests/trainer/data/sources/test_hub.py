"""The hub path: the real `datasets` and `huggingface_hub` clients against a server on localhost."""

from __future__ import annotations

import gzip
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.data_files import ROOT, make_documents
from tests.support.hub_child import BLOCK_CHARS
from tests.support.hub_server import Files, Hub, Silent
from trainer.data import blocks
from trainer.data.config import DataConfig
from trainer.data.prepare import prepare
from trainer.data.sources.hub import datasets_library

OLD, NEW = "a" * 40, "b" * 40
README = b"""---
configs:
- config_name: en
  data_files:
  - split: train
    path: en/c4-train.*.json.gz
  - split: validation
    path: en/c4-validation.*.json.gz
- config_name: realnewslike
  data_files:
  - split: train
    path: realnewslike/c4-train.*.json.gz
---
# C4
"""


def c4_file(documents: list[str]) -> bytes:
    """One file as C4 has them."""
    rows = [{"text": text, "timestamp": "2019-04-25T12:57:54Z", "url": "https://example.org/"}
            for text in documents]  # fmt: skip
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return gzip.compress(lines.encode(), mtime=0)


def c4_layout(seed: int) -> Files:
    """The layout of allenai/c4, with three files of the en configuration."""
    files = {"README.md": README}
    for i in range(3):
        files[f"en/c4-train.{i:05d}-of-00003.json.gz"] = c4_file(make_documents(600, seed + i))
    files["en/c4-validation.00000-of-00001.json.gz"] = c4_file(make_documents(50, seed + 9))
    files["realnewslike/c4-train.00000-of-00001.json.gz"] = c4_file(make_documents(9, seed + 8))
    return files


def parquet_file(documents: list[str]) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.table({"url": ["u"] * len(documents), "body": documents}), out)
    return out.getvalue()


def bad_lines() -> bytes:
    lines = [json.dumps({"text": text}) for text in make_documents(30)]
    return gzip.compress("\n".join(["not json", *lines, '{"text": 3}']).encode())


@pytest.fixture
def hub(serve: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> str:
    """The hub's address."""
    two = [parquet_file(make_documents(90)), parquet_file(make_documents(90, 1))]
    repos = {
        "allenai/c4": {OLD: c4_layout(0), NEW: c4_layout(100)},
        "some/parquet": {OLD: {f"data/train-{i:05d}-of-00002.parquet": part
                               for i, part in enumerate(two)}},
        "some/badlines": {OLD: {"train.jsonl.gz": bad_lines()}},
        "some/list": {OLD: {"train.json": json.dumps([{"text": t} for t in make_documents(40)])
                            .encode()}},
        "some/testonly": {OLD: {"test.jsonl": b'{"text": "x"}\n'}},
        "some/breaks": {OLD: {"train-0.jsonl": b'{"text": "fine words"}\n' * 4000,
                              "train-1.jsonl": b'{"text": "other words"}\n' * 4000}},
        "some/gated": {OLD: {}},
        "some/csv": {OLD: {"train.csv": b"url,text\n" + b"u,fine words\n" * 40}},
    }  # fmt: skip
    monkeypatch.setattr(Hub, "repos", repos)
    monkeypatch.setattr(Hub, "newest", {})
    monkeypatch.setattr(Hub, "gated", {"some/gated"})
    monkeypatch.setattr(Hub, "broken", {"train-1.jsonl"})
    monkeypatch.setattr(Hub, "log", [])
    return serve(Hub)


def run_jobs(
    endpoint: str, jobs: list[dict[str, Any]], offline: bool = False, **settings: Any
) -> list[dict[str, Any]]:
    env = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": str(int(offline))}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "tests.support.hub_child"],
        input=json.dumps({"jobs": jobs, **settings}),
        env=env, cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_c4_is_streamed_and_equals_a_local_clone(
    hub: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    first, switched, more, fresh, whole = run_jobs(hub, [
        {"source": "c4", "tokens": 40_000},
        {"get": f"{hub}/test/switch/allenai/c4/{NEW}"},
        {"source": "hub:allenai/c4:en", "tokens": 10},  # the same text under its other name
        {"source": "c4", "tokens": 200_000},
        {"source": "c4", "tokens": 10**9},
    ])  # fmt: skip
    assert switched == {"status": 200}
    assert more["folder"] == first["folder"]
    assert (first["n_train"], more["n_train"], fresh["n_train"]) == (40_000, 10, 200_000)
    assert first["description"] == "c4 (allenai/c4, en), tokenizer bytes"
    assert not first["torch"]
    # Whatever becomes the newest commit later, an extension stays with its own.
    assert {r["revision"] for r in (first, fresh, whole)} == {OLD}
    assert first["val"] == fresh["val"] == whole["val"]
    assert (first["exhausted"], whole["exhausted"]) == (False, True)
    # The same files in a folder give the same tokens.
    for name, content in c4_layout(0).items():
        path = tmp_path / "clone" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    monkeypatch.setattr(blocks, "SMALLEST_BLOCK_CHARS", BLOCK_CHARS)
    monkeypatch.setattr(blocks, "LARGEST_BLOCK_CHARS", BLOCK_CHARS)
    local = DataConfig(source=str(tmp_path / "clone" / "en"))
    for result, wanted in ((first, 40_000), (fresh, 200_000), (whole, 10**9)):
        data = prepare(local, "bytes", train_tokens=wanted, val_tokens=None)
        assert (data.data_checksum, data.val_checksum) == (result["train"], result["val"])
    # Files were read in order, and an extension did not fetch again what was finished.
    read = [line.partition("c4-train.")[2][:5] for line in Hub.log if "/en/c4-train" in line]
    assert read == sorted(read), Hub.log
    assert set(read) == {"00000", "00001", "00002"}
    assert not [line for line in Hub.log if "c4-validation" in line and "resolve" in line]


@pytest.mark.slow
def test_other_data_sets_and_what_can_be_wrong_with_them(hub: str):
    def job(source: str, **more: Any) -> dict[str, Any]:
        return {"source": source, "tokens": 10**9, **more}

    parquet, bad, listed, one_text, *wrong = run_jobs(hub, [
        job("hub:some/parquet", field="body"),
        job("hub:some/badlines"),
        job("hub:some/list"),
        job("hub:some/csv"),
        job("hub:some/csv", field="body"),
        job("hub:some/parquet"),
        job("hub:some/badlines", field="body"),
        job("hub:allenai/c4"),
        job("hub:allenai/c4:fr"),
        job("hub:nobody/nothing"),
        job("hub:some/testonly"),
        job("hub:some/gated"),
        job("hub:some/breaks"),
    ], hurry=True)  # fmt: skip
    both = make_documents(90) + make_documents(90, 1)
    n_bytes = sum(len(text.encode()) for text in both)
    assert parquet["n_train"] + parquet["n_val"] == n_bytes + len(both)
    assert parquet["exhausted"]
    assert "error" not in bad, bad
    n_bytes = sum(len(text.encode()) for text in make_documents(30))
    assert bad["n_train"] + bad["n_val"] == n_bytes + 30
    assert bad["bad"] == [
        "hub:some/badlines: train.jsonl.gz:1 not JSON (Expecting value at column 1)",
        "hub:some/badlines: train.jsonl.gz:32 field 'text' is a number, not text",
    ]
    n_bytes = sum(len(text.encode()) for text in make_documents(40))
    assert listed["n_train"] + listed["n_val"] == n_bytes + 40
    assert "only one document" in one_text["error"]
    expected = [
        "hub:some/csv: no field 'body'; fields: url, text; set",
        "hub:some/parquet: no field 'text'; fields: url, body; set data.text_field",
        "hub:some/badlines: none of 32 records can be used; the first: hub:some/badlines: "
        "train.jsonl.gz:1 not JSON",
        "hub:allenai/c4: Config name is missing. Please pick one among the available configs",
        "hub:allenai/c4:fr: BuilderConfig 'fr' not found. Available: ['en', 'realnewslike']",
        "hub:nobody/nothing: no such data set on the Hugging Face hub (or private",
        "hub:some/testonly: ",
        "hub:some/gated: this data set wants you to log in first (hf auth login)",
        "hub:some/breaks: reading from the Hugging Face hub broke off (",
    ]
    for result, beginning in zip(wrong, expected, strict=True):
        assert result["error"].startswith(beginning)
        assert "\n" not in result["error"]
        assert len(result["error"]) < 600
    assert "train" in wrong[6]["error"]
    assert "what was finished stays, run the same command again" in wrong[8]["error"]


def test_the_librarys_settings_come_back_after_each_use():
    import datasets

    def settings_now() -> tuple[object, ...]:
        config, bars = datasets.config, datasets.are_progress_bars_disabled()
        retries = config.STREAMING_READ_MAX_RETRIES, config.STREAMING_OPEN_MAX_RETRIES
        return *retries, config.TORCH_AVAILABLE, bars, datasets.logging.get_verbosity()

    before = settings_now()
    with datasets_library():
        assert settings_now() != before
    assert settings_now() == before


@pytest.mark.parametrize("how", ["closed port", "offline", "silent"])
def test_no_network_is_one_line_and_soon(serve: Callable[..., str], how: str):
    endpoint = serve(Silent) if how == "silent" else "http://127.0.0.1:9"
    settings = {"reach_seconds": 0.5} if how == "silent" else {}
    (result,) = run_jobs(
        endpoint, [{"source": "c4", "tokens": 1000}], offline=how == "offline", **settings
    )
    assert result["seconds"] < 15
    message = result["error"]
    assert message.startswith("c4: could not be fetched from the Hugging Face hub (")
    assert "give a path of local text, or use --data demo, which needs no network" in message
    assert "\n" not in message
    assert len(message) < 350
