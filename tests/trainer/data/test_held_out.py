"""One file's tokens, whole: text as it is, documents with their ends, ids of several kinds."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiktoken

from budgetsweep.errors import DataError
from tests.support.data_files import PACK, needs_real_data
from trainer.data.held_out import HeldOut, read_held_out

TEXT = "\n Naïve 日本,\r\n\n\nend of it \n"
DOCUMENTS = ["One.", "Zwei: ß\n", "", "<|endoftext|>"]
JOINED = b"".join(text.encode() + b"\0" for text in DOCUMENTS if text)


def read(path: Path, tokenizer: str | None = "bytes", n_vocab: int = 257, **kw) -> HeldOut:
    return read_held_out(path, tokenizer, n_vocab, **kw)


def as_bytes(held_out: HeldOut) -> bytes:
    """Ids of the tokenizer `bytes`, an end-of-text id as a zero."""
    ids = np.asarray(held_out.ids[:])
    return np.where(ids == 256, 0, ids).astype(np.uint8).tobytes()


COMPRESSED = {"a.txt": bytes, "a.text": bytes, "a.TXT.XZ": PACK[".xz"]}
COMPRESSED |= {f"a.txt{packing}": pack for packing, pack in PACK.items()}


@pytest.mark.parametrize("name", COMPRESSED)
def test_a_text_file_is_taken_as_it_is(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(COMPRESSED[name](TEXT.encode()))
    held_out = read(path)
    assert as_bytes(held_out) == TEXT.encode()
    assert held_out.bytes_per_token == 1.0
    assert held_out.description == f"{path}, tokenizer bytes"


def test_a_large_text_is_one_piece(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("A line of text.\n\n" * 5000)
    assert as_bytes(read(path)) == path.read_bytes()


def test_a_mark_at_the_start_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_bytes(b"\xef\xbb\xbfmarked")
    assert as_bytes(read(tmp_path / "b.txt")) == b"marked"


def jsonl(path: Path, field: str = "text") -> Path:
    path.write_text("".join(json.dumps({field: text, "n": 1}) + "\n" for text in DOCUMENTS))
    return path


def test_an_end_follows_each_document(tmp_path: Path) -> None:
    held_out = read(jsonl(tmp_path / "a.jsonl"))
    assert as_bytes(held_out) == JOINED
    assert held_out.bytes_per_token == pytest.approx(len(JOINED.replace(b"\0", b"")) / len(JOINED))
    other = jsonl(tmp_path / "b.jsonl", "body")
    assert as_bytes(read(other, text_field="body")) == JOINED
    (tmp_path / "c.json").write_text(json.dumps([{"text": text} for text in DOCUMENTS]))
    assert as_bytes(read(tmp_path / "c.json")) == JOINED
    pq.write_table(pa.table({"text": DOCUMENTS}), tmp_path / "d.parquet")
    assert as_bytes(read(tmp_path / "d.parquet")) == JOINED


def test_bad_records_are_left_out_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "ok"}\nnonsense\n{"text": "\\ud800"}\n{"text": "too"}\n')
    assert as_bytes(read(path)) == b"ok\0too\0"
    assert "2 bad records left out, the first: " in caplog.text
    assert "a.jsonl:2: not JSON" in caplog.text
    path.write_text('{"body": "ok"}\n')
    with pytest.raises(DataError, match=r"a\.jsonl:1: no field 'text'; fields: body; no usable"):
        read(path)


IDS = np.random.default_rng(0).integers(0, 257, 500)


@pytest.mark.parametrize("dtype", ["uint16", "int64", ">u2"])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_ids_of_numpy(tmp_path: Path, dtype: str, save: Callable[..., None]) -> None:
    path = tmp_path / "tokens.npz"
    save(path, train=np.zeros(9, dtype), val=IDS.astype(dtype))
    held_out = read(path)
    assert np.array_equal(held_out.ids[:], IDS)
    assert held_out.description == str(path)
    assert held_out.bytes_per_token == np.mean(IDS != 256)
    np.save(tmp_path / "a.npy", IDS.astype(dtype))
    assert np.array_equal(read(tmp_path / "a.npy").ids[:], IDS)


def test_only_the_first_tokens(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", IDS)
    held_out = read(tmp_path / "a.npy", n_tokens=100)
    assert np.array_equal(held_out.ids[:], IDS[:100])
    assert held_out.bytes_per_token == np.mean(IDS[:100] != 256)
    assert len(read(tmp_path / "a.npy", n_tokens=10**6).ids) == 500


def test_bytes_are_unknown_without_a_tokenizer(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.arange(50))
    assert read(tmp_path / "a.npy", tokenizer=None, n_vocab=50).bytes_per_token is None
    np.save(tmp_path / "a.npy", np.arange(300))
    assert read(tmp_path / "a.npy", n_vocab=300).bytes_per_token is None  # an id beyond its table
    (tmp_path / "a.txt").write_text("some text")
    with pytest.raises(DataError, match=r"a\.txt: text needs the model's tokenizer"):
        read(tmp_path / "a.txt", tokenizer=None)
    # Beyond two bytes they are kept.
    np.save(tmp_path / "a.npy", [1, 99_999])
    assert read(tmp_path / "a.npy", None, 100_000).ids[1:].tolist() == [99_999]


def npy(ids: object) -> bytes:
    file = io.BytesIO()
    np.save(file, ids)
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.npy", npy([1, 257, 3]), "token id 257, but the vocabulary has ids 0 to 256: it is of "),
        ("a.npy", npy([1, -1, 3]), "token id -1, but the vocabulary has ids 0 to 256"),
        ("a.npy", npy([1]), "1 tokens; at least 2 are needed"),
        ("a.npy", npy(np.empty(0, int)), "0 tokens; at least 2"),
        ("a.txt", b"", "0 tokens; at least 2"),
        ("a.txt", b"x", "1 tokens; at least 2"),
        ("a.jsonl", b"", "0 tokens; at least 2"),
        ("a.txt", b"caf\xe9", "not UTF-8 text (byte 3)"),
        ("a.txt", "wide".encode("utf-16"), "not UTF-8 text (byte 0)"),
        ("a.pdf", b"%PDF", "what kind of file is this?"),
        ("a.parquet", b"PAR1", "cannot be read"),
    ],
)
def test_files_that_cannot_be_measured(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}: {message}")


@needs_real_data
def test_text_in_gpt2s_tokens(tmp_path: Path, gpt2: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(TEXT.encode())
    held_out = read(path, "gpt2", 50257)
    expected = tiktoken.get_encoding("gpt2").encode_ordinary(TEXT)
    assert held_out.ids[:].tolist() == expected
    assert held_out.bytes_per_token == len(TEXT.encode()) / len(expected)
