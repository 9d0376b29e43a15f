"""The course's tokens.npz."""

from __future__ import annotations

import io
import os
import resource
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from budgetsweep.errors import DataError
from tests.support.data_files import needs_real_data
from trainer.data.config import DataConfig
from trainer.data.prepare import PrepareProgress, folder_for, open_prepared, prepare
from trainer.data.shards.manifest import load_manifest
from trainer.data.shards.tokens import TokenData
from trainer.data.sources import course_npz


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(course_npz, "SHARD_TOKENS", 100)


def prepared(path: Path, train: int | None = None, encoding: str = "bytes", **kw) -> TokenData:
    data = DataConfig(source=str(path), **{k: kw.pop(k) for k in ("validation",) if k in kw})
    return prepare(data, encoding, train_tokens=train, val_tokens=None, **kw)


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
        ({"train": [1, 2]}, "no array 'val' (arrays: train); expected the arrays train and val"),
        ({"x": [1]}, "no array 'train' (arrays: x)"),
        ({"train": [0.5], "val": [1]}, "array 'train' holds float64, not integers"),
        ({"train": [1], "val": ["a"]}, "array 'val' holds <U1, not integers"),
        ({"train": [[1, 2]], "val": [1]}, "array 'train' has shape (1, 2); expected one row"),
        ({"train": np.empty(0, int), "val": [1]}, "array 'train' has shape (0,)"),
        ({"train": [1, 257, 2], "val": [1]}, "has id 257, but the tokenizer has ids 0 to 256"),
        ({"train": [1, 2], "val": [-1]}, "array 'val' has id -1"),
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


class Evil:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (self.path,))


def test_nothing_is_unpickled(tmp_path: Path):
    marker = tmp_path / "executed"
    path = tmp_path / "tokens.npz"
    objects = np.array([Evil(str(marker))], dtype=object)
    np.savez(path, train=objects, val=[1], allow_pickle=True)
    with pytest.raises(DataError, match="array 'train' holds Python objects, not integers"):
        prepared(path)
    assert not marker.exists()
    np.load(path, allow_pickle=True)["train"]  # the file is as evil as it is meant to be
    assert marker.exists()


@pytest.mark.parametrize("content", [b"", b"plain text", b"PK\x03\x04 cut", b"\x93NUMPY\x01\x00"])
def test_a_file_that_is_no_archive(tmp_path: Path, content: bytes):
    path = tmp_path / "tokens.npz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"tokens\.npz: damaged or not an \.npz file"):
        prepared(path)


def test_damage_in_the_middle_is_noticed(tmp_path: Path):
    path = tmp_path / "tokens.npz"
    np.savez(path, train=ids(5000, 0).astype(np.uint16), val=ids(50, 1).astype(np.uint16))
    raw = bytearray(path.read_bytes())
    raw[4000] ^= 1  # inside `train`, still a valid id or not
    path.write_bytes(raw)
    with pytest.raises(DataError, match=r"damaged|has id"):
        prepared(path)


def test_members_that_are_not_arrays(tmp_path: Path):
    path = tmp_path / "tokens.npz"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("train.npy", b"hello")
        file.writestr("val.npy", b"hello")
    with pytest.raises(DataError, match="array 'train' is not a numpy array"):
        prepared(path)
    # An array that claims to be longer than it is.
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<u2", "fortran_order": False, "shape": (10**12,)}
    )
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("train.npy", header.getvalue() + bytes(100))
        file.writestr("val.npy", header.getvalue() + bytes(100))
    with pytest.raises(DataError, match="array 'val' ends in the middle"):
        prepared(path)


def test_validation_is_in_the_file(tmp_path: Path):
    path = tmp_path / "tokens.npz"
    np.savez(path, train=[1, 2], val=[3])
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
    np.savez(path, train=[1, 50256], val=[3])
    data = prepared(path, encoding="gpt2")
    assert data.bytes_per_token is None
    assert (data.n_vocab, data.eot) == (50257, 50256)


@needs_real_data
def test_bytes_per_token_of_gpt2_ids(tmp_path: Path, gpt2: Path):
    import tiktoken

    text = "The naïve reader counts bytes: 日本.\n"
    val = [*tiktoken.get_encoding("gpt2").encode_ordinary(text), 50256]
    path = tmp_path / "tokens.npz"
    np.savez(path, train=[1, 2], val=val)
    assert prepared(path, encoding="gpt2").bytes_per_token == len(text.encode()) / len(val)


def test_memory_does_not_grow_with_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(course_npz, "SHARD_TOKENS", 1 << 20)
    path = tmp_path / "tokens.npz"
    np.savez(path, train=np.zeros(1 << 25, dtype=np.uint16), val=np.zeros(10, np.uint16))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    data = prepared(path)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert len(data.train) == 1 << 25
    kib = 1 if sys.platform != "darwin" else 1024
    assert grown / kib < 60_000  # the array has 64 MiB
