"""Preparing from end to end: split, extension, interruption, cache."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from budgetsweep.errors import DataError
from tests.support.data_files import (
    decode,
    make_documents,
    needs_real_data,
    prepared,
    same,
    write_jsonl,
)
from trainer.data.blocks import document_hash
from trainer.data.cache import folder_for, list_prepared
from trainer.data.config import DataConfig
from trainer.data.prepare import open_prepared, prepare
from trainer.data.shards import progress
from trainer.data.shards.manifest import load_manifest
from trainer.data.shards.progress import PrepareProgress
from trainer.data.shards.tokens import TokenArray
from trainer.data.sources import open_source, records

pytestmark = pytest.mark.usefixtures("small_blocks")


def test_every_document_is_on_the_side_that_its_hash_says(source: Path):
    data = prepared(source)
    manifest = load_manifest(data.folder)
    assert manifest.val_below is not None
    documents = make_documents(1500)
    val = [text for text in documents if document_hash(text) < manifest.val_below]
    train = [text for text in documents if document_hash(text) >= manifest.val_below]
    assert decode(data.val) == val
    assert decode(data.train) == train
    assert 1500 / 100 < len(val) < 1500 / 10  # a twentieth is aimed at
    assert data.exhausted
    assert (data.tokenizer_encoding, data.n_vocab, data.eot) == ("bytes", 257, 256)
    n_bytes = sum(len(text.encode()) for text in val)
    assert data.bytes_per_token == pytest.approx(n_bytes / (n_bytes + len(val)), rel=1e-12)
    raw = b"".join(np.array([*text.encode(), 256], "<u2").tobytes() for text in val)
    assert data.val_checksum == hashlib.sha256(raw).hexdigest()
    assert len(manifest.train) > 5  # several shards


def test_more_is_appended_and_validation_stays(source: Path, tmp_path: Path):
    whole = prepared(source, cache_dir=tmp_path / "other")
    first = prepared(source, 20_000)
    assert len(first.train) == 20_000
    assert not first.exhausted
    frozen = first.val[:].tolist()
    assert frozen
    shards = {p.name: p.read_bytes() for p in first.folder.glob("train-*")}
    second = prepared(source, 60_000)
    assert second.val[:].tolist() == frozen
    assert second.train[:20_000].tolist() == first.train[:].tolist()
    assert second.train[:].tolist() == whole.train[:60_000].tolist()
    assert all((second.folder / name).read_bytes() == raw for name, raw in shards.items())
    last = prepared(source)
    assert last.val[:].tolist() == frozen
    assert last.exhausted
    # Validation of the short first preparation is the beginning of that of a whole one, and what
    # came after it is on neither side.
    assert whole.val[: len(frozen)].tolist() == frozen
    assert decode(last.train) == decode(whole.train)
    # A run that used the first tokens can still see that they are the same.
    assert prepared(source, 20_000).data_checksum == first.data_checksum


def test_enough_is_left_alone(source: Path, monkeypatch: pytest.MonkeyPatch):
    first = prepared(source, 20_000)
    before = {p.name: p.stat().st_mtime_ns for p in first.folder.iterdir()}

    def nobody_reads(path: str):
        raise AssertionError(f"{path} was read")

    monkeypatch.setattr(records, "decompressed", nobody_reads)
    assert same(prepared(source, 20_000), first)
    assert len(prepared(source, 7).train) == 7
    assert {p.name: p.stat().st_mtime_ns for p in first.folder.iterdir()} == before


def test_the_number_of_threads_changes_nothing(source: Path, tmp_path: Path):
    one = prepared(source, 70_000, workers=1, cache_dir=tmp_path / "1")
    five = prepared(source, 70_000, workers=5, cache_dir=tmp_path / "5")
    assert same(one, five)
    manifests = [
        replace(load_manifest(d.folder), created_utc="", updated_utc="") for d in (one, five)
    ]
    assert manifests[0] == manifests[1]


class Stop(Exception):
    """Raised by a progress callback in the place of Ctrl-C."""


@pytest.mark.parametrize("wanted", [None, 60_000])
def test_an_interrupted_preparation_goes_on(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wanted: int | None
):
    monkeypatch.setattr(progress, "TICK_SECONDS", 0.0)
    whole = prepared(source, wanted, cache_dir=tmp_path / "other")
    folder = folder_for(DataConfig(source=str(source)), "bytes")
    reached = []

    def stop_at(n_shards: int) -> Callable[[PrepareProgress], None]:
        def callback(_: PrepareProgress) -> None:
            found = len(load_manifest(folder).train)
            if found >= n_shards:
                reached.append(found)
                raise Stop

        return callback

    for n_shards in (0, 1, 3):
        with pytest.raises(Stop):
            prepared(source, wanted, on_progress=stop_at(n_shards))
    assert reached == [0, 1, 3]
    with pytest.raises(DataError, match="was not finished"):
        open_prepared(DataConfig(source=str(source)), "bytes")
    assert list_prepared()[0].state == "unfinished"
    resumed = prepared(source, wanted)
    assert same(resumed, whole)
    assert resumed.train[:].tolist() == whole.train[:].tolist()


def test_half_written_files_of_a_killed_process_go_away(source: Path):
    folder = prepared(source, 10_000).folder
    (folder / ".train-00099.tok.abcd").write_bytes(b"half")
    prepared(source, 50_000)
    assert [p.name for p in folder.glob(".*")] == [".lock"]


def test_a_changed_file_is_another_text(source: Path):
    first = prepared(source)
    write_jsonl(source, make_documents(1500, seed=1))
    os.utime(source, ns=(1, 1))
    second = prepared(source)
    assert second.folder != first.folder
    assert second.data_checksum != first.data_checksum
    with pytest.raises(DataError, match="not prepared with tokenizer gpt2"):
        open_prepared(DataConfig(source=str(source)), "gpt2")


def test_a_file_that_changes_while_it_is_read_is_refused(source: Path):
    def touch(progress: PrepareProgress) -> None:
        os.utime(source, ns=(progress.tokens, progress.tokens))

    with pytest.raises(DataError, match="changed while it was read"):
        prepared(source, on_progress=touch)


def test_a_separate_validation_text_is_all_validation(tmp_path: Path):
    documents = make_documents(300)
    source = write_jsonl(tmp_path / "train.jsonl", documents)
    other = write_jsonl(tmp_path / "other.jsonl", make_documents(40, seed=9) + documents[50:60])
    data = prepared(source, validation=str(other))
    assert decode(data.val) == make_documents(40, seed=9) + documents[50:60]
    # Its documents are not trained on, wherever they came from.
    assert decode(data.train) == documents[:50] + documents[60:]
    partly = prepared(source, 3_000, validation=str(other), cache_dir=tmp_path / "x")
    assert partly.val_checksum == data.val_checksum
    extended = prepared(source, validation=str(other), cache_dir=tmp_path / "x")
    assert same(extended, data)
    with pytest.raises(DataError, match="c4: no separate validation text; give a path"):
        prepared(source, validation="c4")
    with pytest.raises(DataError, match="every document is also in"):
        prepared(other, validation=str(other))
    write_jsonl(other, [])
    with pytest.raises(DataError, match=r"other\.jsonl: no text in it \(empty\)"):
        prepared(source, validation=str(other))


@pytest.mark.parametrize("n", [2, 3, 5, 17])
def test_few_documents_still_give_both_sides(tmp_path: Path, n: int):
    for seed in range(5):
        path = write_jsonl(tmp_path / f"{seed}.jsonl", make_documents(n, seed=seed))
        data = prepared(path)
        train, val = decode(data.train), decode(data.val)
        assert train
        assert val
        assert sorted(train + val) == sorted(make_documents(n, seed=seed))
        assert max(map(document_hash, val)) < min(map(document_hash, train))


def test_one_document_cannot_be_split(tmp_path: Path):
    path = write_jsonl(tmp_path / "a.jsonl", ["the same text"] * 10)
    with pytest.raises(DataError, match="only one document, so nothing is left to validate on"):
        prepared(path)
    # With a separate validation text it is enough.
    other = write_jsonl(tmp_path / "b.jsonl", ["another"])
    assert decode(prepared(path, validation=str(other)).train) == ["the same text"] * 10


def test_a_small_book_is_split_by_paragraphs(tmp_path: Path):
    path = tmp_path / "book.txt"
    path.write_text("\n\n".join(make_documents(150)))
    data = prepared(path)
    train, val = decode(data.train), decode(data.val)
    assert 0.005 < len(data.val) / len(data.train) < 0.25
    assert sorted("\n\n".join(train + val).split("\n\n")) == sorted(make_documents(150))


def test_bad_records_are_counted_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    path = write_jsonl(tmp_path / "a.jsonl", make_documents(400))
    lines = path.read_text().splitlines(keepends=True)
    lines[7] = "not json\n"
    lines[390] = '{"other": 1}\n'
    path.write_text("".join(lines))
    data = prepared(path)
    assert list_prepared()[0].bad_records == 2
    assert f"2 bad records left out, the first: {path}:8 not JSON" in caplog.text
    assert f"{path}:391 no field 'text'; fields: other" in caplog.text
    assert len(decode(data.train)) + len(decode(data.val)) == 398


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"", "no text in it (empty)"),
        ("a.jsonl", b"\n\n\n", "no text in it (empty)"),
        ("a.jsonl", b'{"text": ""}\n', "no text in it (empty)"),
        ("a.jsonl", b"not json\n" * 3, "none of 3 records can be used; the first: "),
        ("a.jsonl", b'{"body": "x"}\n', "fields: body; set data.text_field to one of them"),
        ("a.csv", b"id,text\n", "no text in it (empty)"),
        ("b.csv", b"headline,title,text\n", "no text in it (empty)"),
        ("a.txt", b"\xe9t\xe9\n\n" * 5000, "records can be used; the first: "),
    ],
)
def test_nothing_usable_is_said_and_leaves_nothing(
    tmp_path: Path, name: str, content: bytes, message: str
):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        prepared(path)
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"{path}: ")
    assert list_prepared() == []


def test_more_validation_reads_on(source: Path, tmp_path: Path):
    little = prepared(source, 5_000, cache_dir=tmp_path / "a")
    more = prepared(source, 5_000, 3_000, cache_dir=tmp_path / "b")
    assert len(little.val) < 3_000 == len(more.val)
    assert len(more.train) == 5_000
    assert more.val[: len(little.val)].tolist() == little.val[:].tolist()


def test_the_limits_of_the_config_count_too(source: Path):
    data = prepared(source, train_tokens=7_000)
    assert len(data.train) == 7_000
    assert load_manifest(data.folder).exhausted is False


def test_progress_is_told_and_grows(source: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(progress, "TICK_SECONDS", 0.0)
    seen: list[PrepareProgress] = []
    data = prepared(source, 40_000, on_progress=seen.append)
    assert len(seen) > 5
    tokens = [p.tokens for p in seen]
    assert tokens[:-1] == sorted(tokens[:-1])
    assert tokens[-1] >= 40_000
    assert {p.wanted_tokens for p in seen} == {40_000}
    assert seen[-1].seconds_left == 0.0
    assert all(p.tokens_per_second >= 0 for p in seen)
    assert len(data.train) == 40_000
    more: list[PrepareProgress] = []
    prepared(source, on_progress=more.append)
    assert more[0].tokens >= 40_000  # earlier runs are counted
    assert more[0].wanted_tokens is None


def test_the_hub_wants_a_number():
    for name in ("c4", "hub:a/b"):
        with pytest.raises(DataError, match="say how many training tokens you want"):
            prepared(name)
    assert list_prepared() == []


def test_the_demo_needs_nothing():
    data = prepare(DataConfig(source="demo"), "bytes", train_tokens=50_000, val_tokens=None)
    assert len(data.train) == 50_000
    first = decode(TokenArray([data.train[: np.flatnonzero(data.train[:] == 256)[0] + 1]]))
    library = [record.text for record in open_source("demo").records()]
    assert first[0] in library
    again = prepare(DataConfig(source="demo"), "bytes", train_tokens=50_000, val_tokens=None)
    assert same(again, data)


@needs_real_data
def test_gpt2_tokens_are_those_of_tiktoken(gpt2: Path, source: Path):
    import tiktoken

    data = prepare(DataConfig(source=str(source)), "gpt2", train_tokens=None, val_tokens=None)
    below = load_manifest(data.folder).val_below
    assert below is not None
    encoding = tiktoken.get_encoding("gpt2")
    expected: dict[bool, list[int]] = {True: [], False: []}
    for text in make_documents(1500):
        expected[document_hash(text) < below] += [*encoding.encode_ordinary(text), 50256]
    assert data.train[:].tolist() == expected[False]
    assert data.val[:].tolist() == expected[True]
    text = encoding.decode([i for i in expected[True] if i != 50256])
    assert data.bytes_per_token == pytest.approx(len(text.encode()) / len(expected[True]))


def test_without_the_tokenizer_nothing_is_left_behind(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def no_network(name: str):
        raise DataError("tokenizer gpt2: its files could not be fetched")

    monkeypatch.setattr("trainer.data.writer.load_tokenizer", no_network)
    with pytest.raises(DataError, match="could not be fetched"):
        prepare(DataConfig(source=str(source)), "gpt2", train_tokens=None, val_tokens=None)
    assert list_prepared() == []
