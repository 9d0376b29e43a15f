"""The course's tokens.npz."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest

from budgetsweep.errors import DataError
from tests.support.data_files import Evil, prepared
from trainer.data.cache import folder_for
from trainer.data.config import DataConfig
from trainer.data.prepare import open_prepared
from trainer.data.shards.manifest import load_manifest
from trainer.data.shards.progress import PrepareProgress
from trainer.data.sources import course_npz
from trainer.data.sources.course_npz import read_ids


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(course_npz, "SHARD_TOKENS", 100)


def ids(n: int, seed: int, top: int = 257) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, top, n)


@pytest.mark.parametrize("dtype", ["uint16", "int64", "int32", ">u2", ">i8"])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_ids_arrive_as_they_are(tmp_path: Path, dtype: str, save):
    path = tmp_path / "tokens.npz"
    save(path, train=ids(1234, 0).astype(dtype), val=ids(345, 1).astype(dtype), other=[1.5])
    data = prepared(path)
    assert data.train[:].tolist() == ids(1234, 0).tolist()
    assert data.val[:].tolist() == ids(345, 1).tolist()
    assert (data.exhausted, data.eot, data.n_vocab) == (True, 256, 257)
    # 256 stands for no byte, every other id for one.
    assert data.bytes_per_token == np.mean(ids(345, 1) != 256)
    assert len(load_manifest(data.folder).train) == 13


def test_only_what_is_wanted_is_copied_and_more_later(tmp_path: Path):
    path = tmp_path / "tokens.npz"
    np.savez_compressed(path, train=ids(1234, 0), val=ids(345, 1))
    first = prepared(path, 250)
    assert first.train[:].tolist() == ids(1234, 0)[:250].tolist()
    assert not first.exhausted
    assert load_manifest(first.folder).train_tokens == 300
    seen: list[PrepareProgress] = []
    more = prepared(path, 900, on_progress=seen.append)
    assert more.train[:].tolist() == ids(1234, 0)[:900].tolist()
    assert more.val_checksum == first.val_checksum
    assert seen[-1].tokens == 900
    assert prepared(path, 10**9).train[:].tolist() == ids(1234, 0).tolist()
    assert prepared(path, 250).data_checksum == first.data_checksum


def test_an_interrupted_copy_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from trainer.data.shards import progress

    monkeypatch.setattr(progress, "TICK_SECONDS", 0.0)
    path = tmp_path / "tokens.npz"
    np.savez(path, train=ids(1234, 0), val=ids(345, 1))

    def stop(p: PrepareProgress) -> None:
        if p.tokens >= 500:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepared(path, on_progress=stop)
    folder = folder_for(DataConfig(source=str(path)), "bytes")
    manifest = load_manifest(folder)
    assert (manifest.train_tokens, manifest.val_frozen) == (500, False)
    with pytest.raises(DataError, match="was not finished"):
        open_prepared(DataConfig(source=str(path)), "bytes")
    assert prepared(path).train[:].tolist() == ids(1234, 0).tolist()


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"train": [1, 2]}, "no array 'val' (arrays: train); expected one row of token ids"),
        ({"x": [1]}, "no array 'train' (arrays: x)"),
        ({"train": [1, 257, 2], "val": [1, 2]}, "'train': token id 257, but the vocabulary has"),
        ({"train": [1, 2], "val": [-1, 2]}, "array 'val': token id -1"),
        ({"train": [1, 2], "val": [1]}, "array 'val': 1 tokens; at least 2 are needed"),
    ],
)
def test_wrong_arrays_are_explained(tmp_path: Path, arrays: dict, message: str):
    path = tmp_path / "tokens.npz"
    np.savez(path, **arrays)
    with pytest.raises(DataError) as caught:
        prepared(path)
    assert message in str(caught.value)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


# What is no array of ids at all, and the ids of a .npy file -------------------------------------


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([0.5, 1.5], "holds float64 of shape (2,); expected one row of token ids"),
        (["a"], "holds <U1 of shape (1,)"),
        ([[1, 2]], "holds int64 of shape (1, 2)"),
        (np.array(7), "holds int64 of shape ()"),
    ],
)
@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_arrays_of_anything_else_are_refused(tmp_path: Path, ids, message: str, suffix: str):
    path = tmp_path / f"a{suffix}"
    if suffix == ".npy":
        np.save(path, ids)
    else:
        np.savez(path, val=ids)
    with pytest.raises(DataError) as caught:
        read_ids(path, "val")
    assert str(caught.value).startswith(f"{path}: {message}")


def too_long() -> bytes:
    """An array that claims 10**15 ids."""
    file = io.BytesIO()
    header = {"descr": "<u2", "fortran_order": False, "shape": (10**15,)}
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue() + bytes(100)


def changed_in_the_middle() -> bytes:
    file = io.BytesIO()
    np.savez(file, val=ids(5000, 0).astype(np.uint16))
    raw = bytearray(file.getvalue())
    raw[4000] ^= 1
    return bytes(raw)


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
@pytest.mark.parametrize(
    "content",
    [b"", b"text", b"PK\x03\x04 cut", b"\x93NUMPY\x01", too_long(), changed_in_the_middle()],
)
def test_damaged_arrays_are_one_clear_line(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    with pytest.raises(DataError, match="damaged or no array of ids") as caught:
        read_ids(path, "val")
    assert "\n" not in str(caught.value)


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    marker, path = tmp_path / "executed", tmp_path / "a.npz"
    np.savez(path, train=np.array([Evil(marker)], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="damaged or no array of ids"):
        prepared(path)
    assert not marker.exists()
    np.load(path, allow_pickle=True)["train"]  # the file is as evil as it is meant to be
    assert marker.exists()


def test_validation_is_in_the_file(tmp_path: Path):
    path = tmp_path / "tokens.npz"
    np.savez(path, train=[1, 2], val=[3, 4])
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(DataError, match="has its own validation tokens; remove"):
        prepared(path, validation=str(tmp_path / "a.txt"))


def test_bytes_per_token_is_unknown_without_the_tokenizer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def no_network(name: str):
        raise DataError("no network")

    monkeypatch.setattr(course_npz, "load_tokenizer", no_network)
    path = tmp_path / "tokens.npz"
    np.savez(path, train=[1, 50256], val=[3, 4])
    data = prepared(path, encoding="gpt2")
    assert data.bytes_per_token is None
    assert (data.n_vocab, data.eot) == (50257, 50256)
