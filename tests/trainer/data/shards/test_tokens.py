"""Shards and token arrays against plain numpy, and against every kind of damage."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from budgetsweep.errors import DataError
from trainer.data.shards.manifest import Manifest, load_manifest, save_manifest
from trainer.data.shards.tokens import (
    TokenArray,
    open_tokens,
    read_shard,
    sha256_of_ids,
    write_shard,
)

PARTS = st.lists(
    st.lists(st.integers(0, 65535), max_size=12).map(lambda x: np.array(x, dtype=np.uint16)),
    max_size=6,
)
SAME_TMP = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@given(PARTS, st.data())
def test_slices_equal_those_of_one_joined_array(parts: list[np.ndarray], data: st.DataObject):
    joined = np.concatenate([np.empty(0, np.uint16), *parts])
    n = data.draw(st.integers(0, len(joined)))
    tokens = TokenArray(parts, n)
    assert len(tokens) == n
    bound = st.one_of(st.none(), st.integers(-20, 80))
    key = slice(data.draw(bound), data.draw(bound))
    expected = joined[:n][key]
    got = tokens[key]
    assert got.dtype == np.uint16
    assert got.tolist() == expected.tolist()
    assert np.concatenate([np.empty(0, np.uint16), *tokens.parts]).tolist() == joined[:n].tolist()


@given(PARTS, st.data())
def test_gather_equals_indexing_of_one_joined_array(parts: list[np.ndarray], data: st.DataObject):
    joined = np.concatenate([np.empty(0, np.uint16), *parts])
    length = data.draw(st.integers(1, 20))
    tokens = TokenArray(parts)
    if len(joined) < length:
        with pytest.raises(IndexError, match="do not lie within"):
            tokens.gather([0], length)
        return
    starts = data.draw(st.lists(st.integers(0, len(joined) - length), max_size=8))
    got = tokens.gather(np.array(starts, dtype=np.int64), length)
    assert got.dtype == np.int64
    assert got.shape == (len(starts), length)
    for row, start in zip(got, starts, strict=True):
        assert row.tolist() == joined[start : start + length].tolist()
    for wrong in (-1, len(joined) - length + 1):
        with pytest.raises(IndexError):
            tokens.gather([wrong], length)


def test_a_slice_is_a_copy_and_parts_are_not():
    part = np.arange(5, dtype=np.uint16)
    tokens = TokenArray([part], 4)
    tokens[0:3][:] = 9
    assert part.tolist() == [0, 1, 2, 3, 4]
    assert np.shares_memory(tokens.parts[0], part)


def test_from_arrays_takes_any_integers_that_fit():
    tokens = TokenArray.from_arrays([[1, 2], np.array([65535]), []])
    assert tokens[:].tolist() == [1, 2, 65535]
    for wrong in ([-1], [65536], [0.5]):
        with pytest.raises(ValueError, match="expected"):
            TokenArray.from_arrays([wrong])


def test_more_than_there_is_and_other_steps_are_refused():
    tokens = TokenArray.from_arrays([[1, 2, 3]])
    with pytest.raises(ValueError, match="step 1"):
        tokens[::2]
    with pytest.raises(ValueError, match="there are 3"):
        TokenArray(tokens.parts, 4)


@SAME_TMP
@given(st.lists(st.integers(0, 65535), max_size=50))
def test_a_shard_gives_back_what_was_written(tmp_path: Path, ids: list[int]):
    array = np.array(ids, dtype=np.uint16)
    entry = write_shard(tmp_path / "a.tok", array, tokenizer="gpt2", split="val")
    header, got = read_shard(tmp_path / "a.tok", verify=True)
    assert got.tolist() == ids
    assert (header.tokenizer, header.split, header.n_tokens) == ("gpt2", "val", len(ids))
    raw = np.array(ids, dtype="<u2").tobytes()
    assert entry.sha256 == header.sha256 == hashlib.sha256(raw).hexdigest()
    assert (tmp_path / "a.tok").read_bytes().endswith(raw)  # the payload is plain little-endian


@SAME_TMP
@given(st.data())
def test_any_changed_byte_is_noticed(tmp_path: Path, data: st.DataObject):
    path = tmp_path / "a.tok"
    write_shard(path, np.arange(40, dtype=np.uint16), tokenizer="gpt2", split="train")
    raw = bytearray(path.read_bytes())
    position = data.draw(st.integers(0, len(raw) - 1))
    raw[position] ^= data.draw(st.integers(1, 255))
    path.write_bytes(raw)
    with pytest.raises(DataError, match=re.escape(str(path))):
        read_shard(path, verify=True)


@SAME_TMP
@given(st.data())
def test_any_other_length_is_noticed_without_reading_the_payload(
    tmp_path: Path, data: st.DataObject
):
    path = tmp_path / "a.tok"
    write_shard(path, np.arange(40, dtype=np.uint16), tokenizer="gpt2", split="train")
    raw = path.read_bytes()
    length = data.draw(st.integers(0, len(raw) + 40).filter(lambda n: n != len(raw)))
    path.write_bytes((raw + bytes(40))[:length])
    with pytest.raises(DataError, match=r"truncated|too long|not a token file"):
        read_shard(path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not a token file"),
        (b"\x93NUMPY" + bytes(200), "not a token file"),
        (b"plain text " * 50, "not a token file"),
        (b"BSWTOKEN" + (99).to_bytes(4, "little") + bytes(200), "version 99"),
        (b"BSWTOKEN" + (1).to_bytes(4, "little") + b"\xff" * 4 + bytes(200), "damaged"),
    ],
)
def test_a_foreign_file_is_refused_in_one_line(tmp_path: Path, content: bytes, reason: str):
    path = tmp_path / "a.tok"
    path.write_bytes(content)
    with pytest.raises(DataError, match=reason) as caught:
        read_shard(path)
    assert "\n" not in str(caught.value)


def make_folder(folder: Path, train: list[list[int]], val: list[list[int]], **changes) -> Path:
    folder.mkdir(parents=True)

    def write(split: str, parts: list[list[int]]):
        return tuple(
            write_shard(
                folder / f"{split}-{i:05d}.tok", np.array(part, np.uint16), tokenizer="bytes",
                split=split,
            )
            for i, part in enumerate(parts)
        )  # fmt: skip

    table = np.ones(257, dtype=np.uint16)
    table[256] = 0
    manifest = Manifest(
        source="made", description="made, bytes", identity="00", tokenizer="bytes", n_vocab=257,
        eot=256, train=write("train", train), val=write("val", val), val_frozen=True,
        token_bytes=write_shard(folder / "t.tok", table, tokenizer="bytes", split="token_bytes"),
    )  # fmt: skip
    save_manifest(folder, replace(manifest, **changes))
    return folder


def test_open_cuts_to_what_is_wanted(tmp_path: Path):
    folder = make_folder(tmp_path / "f", [[1, 2, 3], [], [4, 5]], [[6, 256], [7, 256]])
    whole = open_tokens(folder, verify=True)
    assert whole.train[:].tolist() == [1, 2, 3, 4, 5]
    assert whole.val[:].tolist() == [6, 256, 7, 256]
    assert whole.bytes_per_token == 0.5  # two bytes of text, four tokens
    cut = open_tokens(folder, 4, 3)
    assert cut.train[:].tolist() == [1, 2, 3, 4]
    assert cut.val[:].tolist() == [6, 256, 7]
    assert cut.bytes_per_token == pytest.approx(2 / 3)
    assert cut.val_checksum == sha256_of_ids([np.array([6, 256, 7], np.uint16)])
    assert cut.val_checksum == hashlib.sha256(np.array([6, 256, 7], "<u2").tobytes()).hexdigest()


def test_the_data_checksum_identifies_the_tokens_used(tmp_path: Path):
    folder = make_folder(tmp_path / "f", [[1, 2, 3], [4, 5, 6]], [[9]])
    longer = make_folder(tmp_path / "g", [[1, 2, 3], [4, 5, 6], [7]], [[8]])
    other = make_folder(tmp_path / "h", [[1, 2, 3], [4, 9, 6]], [[9]])
    sums = [open_tokens(folder, n).data_checksum for n in range(1, 7)]
    assert len(set(sums)) == 6
    # Text appended later and another validation set change nothing.
    assert sums == [open_tokens(longer, n).data_checksum for n in range(1, 7)]
    others = [open_tokens(other, n).data_checksum for n in range(1, 7)]
    assert [a == b for a, b in zip(sums, others, strict=True)] == [True] * 4 + [False] * 2


def test_what_is_wrong_with_a_folder_is_said(tmp_path: Path):
    folder = make_folder(tmp_path / "f", [[1, 2, 3]], [[9]])
    with pytest.raises(DataError, match=r"4 training tokens asked for, 3 are prepared"):
        open_tokens(folder, 4)
    with pytest.raises(DataError, match=r"2 validation tokens asked for, 1 are prepared"):
        open_tokens(folder, 1, 2)
    with pytest.raises(DataError, match=r"no manifest.json"):
        open_tokens(tmp_path)
    unfinished = make_folder(tmp_path / "u", [[1]], [[2]], val_frozen=False)
    with pytest.raises(DataError, match="was not finished"):
        open_tokens(unfinished)
    # A good shard of another text in the place of ours.
    write_shard(folder / "train-00000.tok", np.array([1, 2, 4], np.uint16), tokenizer="bytes",
                split="train")  # fmt: skip
    with pytest.raises(DataError, match="not the file that the manifest"):
        open_tokens(folder)
    (folder / "train-00000.tok").unlink()
    with pytest.raises(DataError, match=r"train-00000\.tok: cannot be read"):
        open_tokens(folder)


@SAME_TMP
@given(st.data())
def test_a_damaged_manifest_is_refused(tmp_path: Path, data: st.DataObject):
    folder = tmp_path / "f"
    if not folder.exists():
        make_folder(folder, [[1, 2, 3]], [[9]])
        (tmp_path / "good").write_bytes((folder / "manifest.json").read_bytes())
    raw = bytearray((tmp_path / "good").read_bytes())
    position = data.draw(st.integers(0, len(raw) - 1))
    raw[position] ^= data.draw(st.integers(1, 255))
    (folder / "manifest.json").write_bytes(raw)
    try:
        changed = json.loads(raw)
    except ValueError:
        changed = None
    if changed == json.loads((tmp_path / "good").read_bytes()):
        load_manifest(folder)  # only white space of the layout changed
    else:
        with pytest.raises(DataError, match=r"manifest\.json"):
            load_manifest(folder)


def test_a_manifest_of_another_version_says_so(tmp_path: Path):
    folder = make_folder(tmp_path / "f", [[1]], [[2]])
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"version": 1', '"version": 2', 1))
    with pytest.raises(DataError, match="format version 2, this program reads 1"):
        load_manifest(folder)
    path.write_text('{"name": "something else"}')
    with pytest.raises(DataError, match="not a manifest of budgetsweep"):
        load_manifest(folder)
