"""Texts with labels: the same data from any kind of file, and one line for any that is none."""

from __future__ import annotations

import csv
import gzip
import io
import json
import lzma
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from budgetsweep.errors import DataError
from tests.support.data_files import PACK, ROOT
from tests.support.hub_server import Hub
from trainer.sentiment.labelled import LabelledTexts, read_labelled

TEXTS = ['Nice, "very" nice.', "Bad\n\nfood; {text}", "", "né 日本\\n", "=1+1"]
LABELS = [1, 0, 0, 1, 0]
PACKERS: dict[str, Callable[[bytes], bytes]] = {"": bytes, **PACK}


def as_csv(header: list[str] | None = None, shift: int = 0, end: str = "\n") -> bytes:
    out = io.StringIO()
    writer = csv.writer(out, quoting=csv.QUOTE_ALL, lineterminator=end)
    if header:
        writer.writerow(header)
    for text, label in zip(TEXTS, LABELS, strict=True):
        row = {"text": text, "label": label + shift, "id": 7}
        writer.writerow([row[name.strip()] for name in header or ["label", "text"]])
    return out.getvalue().encode()


def as_jsonl(shift: int = 0) -> bytes:
    rows = [{"id": 1, "text": text, "label": label + shift}
            for text, label in zip(TEXTS, LABELS, strict=True)]  # fmt: skip
    return "\n\n".join(json.dumps(row) for row in rows).encode()


def as_parquet(names: tuple[str, str] = ("text", "label")) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.table({"x": TEXTS, names[0]: TEXTS, names[1]: LABELS}), out)
    return out.getvalue()


def read_bytes(folder: Path, name: str, content: bytes, **kw: str) -> LabelledTexts:
    (folder / name).write_bytes(content)
    return read_labelled(str(folder / name), **kw)


def refused(folder: Path, name: str, content: bytes, **kw: str) -> str:
    with pytest.raises(DataError) as caught:
        read_bytes(folder, name, content, **kw)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 600
    return message


@pytest.mark.parametrize("packing", PACKERS)
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", as_csv(["text", "label"])),
        ("a.CSV", as_csv(["label", "id", "text"])),
        ("a.csv", b"\xef\xbb\xbf" + as_csv([" label", "text"], end="\r\n")),
        ("a.csv", as_csv()),
        ("a.csv", as_csv(shift=1)),
        ("a.jsonl", as_jsonl()),
        ("a.jsonl", as_jsonl(shift=1)),
        ("a.json", b"[" + as_jsonl().replace(b"\n\n", b",") + b"]"),
    ],
)  # fmt: skip
def test_the_same_reviews_from_any_kind_of_file(
    tmp_path: Path, name: str, content: bytes, packing: str
) -> None:
    data = read_bytes(tmp_path, name + packing, PACKERS[packing](content))
    assert data.texts == TEXTS
    assert data.labels == LABELS
    assert data.checksum == LabelledTexts(TEXTS, LABELS, "elsewhere").checksum


def test_parquet_and_other_names_of_fields(tmp_path: Path) -> None:
    assert read_bytes(tmp_path, "a.parquet", as_parquet()).labels == LABELS
    other = as_parquet(("body", "stars"))
    data = read_bytes(tmp_path, "b.parquet", other, text_field="body", label_field="stars")
    assert (data.texts, data.labels) == (TEXTS, LABELS)
    message = refused(tmp_path, "b.parquet", other)
    assert "no field 'text'; fields: x, body, stars; give --text-field, --label-field" in message


def test_the_checksum_tells_data_sets_apart() -> None:
    base = LabelledTexts(["ab", "c"], [0, 1], "")
    for other in (
        LabelledTexts(["a", "bc"], [0, 1], ""),
        LabelledTexts(["c", "ab"], [1, 0], ""),
        LabelledTexts(["ab", "c"], [1, 0], ""),
    ):
        assert other.checksum != base.checksum


GOOD = b'{"text": "a", "label": 0}\n{"text": "b", "label": 1}\n'


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"", "empty; expected records with text and label"),
        ("a.jsonl", b"\n \n", "empty"),
        ("a.csv", b"text,label\n", "empty"),
        ("a.csv", b"review,stars\nx,1\n", ":1: columns 'review, stars'; expected a header"),
        ("a.csv", b"text;label\nx;1\n", ":1: columns 'text;label'; expected a header with 'text'"),
        ("a.csv", b"text,label\nx,0\ny\n", ":3: 1 columns, expected 2"),
        ("a.csv", b"text,label\nx,0\ny,1,2\n", ":3: 3 columns, expected 2"),
        ("a.csv", b'text,label\n"x\ny",0\nz,7\n', ":4: label '7'; expected 0 (negative) and 1"),
        ("a.csv", b'text,label\nx,0\n"y,1\nz,1\n', ":3: not CSV (unexpected end of data)"),
        ("a.csv", b"text,label\nx,0\n" + b"y" * 200_000 + b",1\n", ":3: not CSV (field larger"),
        ("a.csv", b"text,label\nx,0\n\xe9t\xe9,1\n", ":3: not UTF-8 (byte 1 of the line)"),
        ("a.csv", "text,label\nx,0\n".encode("utf-16"), "UTF-16 text; save it as UTF-8"),
        ("a.csv", b"text,label\nx,1\ny,1\n", "every label is 1; expected texts of both classes"),
        ("a.csv", b"text,label\nx,0\ny,1\nz,2\n", "labels 0, 1, 2 occur; expected 0 (negative)"),
        ("a.csv", b"text,label\nx,0\ny,2\n", "labels 0, 2 occur"),
        ("a.csv", b"text,label\nx,positive\n", ":2: label 'positive'; expected"),
        ("a.csv", b"text,label\nx,\n", ":2: label ''; expected"),
        ("a.jsonl", GOOD + b'{"text": "c", "label": true}', ":3: label True; expected"),
        ("a.jsonl", GOOD + b'{"text": "c", "label": null}', ":3: label None; expected"),
        ("a.jsonl", GOOD + b'{"text": "c", "label": [[0]]}', ":3: label [[0]]; expected"),
        ("a.jsonl", GOOD + b'{"text": "c", "label": 0.5}', ":3: label 0.5; expected"),
        ("a.jsonl", GOOD + b'{"text": "c", "label": NaN}', ":3: label nan; expected"),
        ("a.jsonl", GOOD + b'{"text": 3, "label": 0}', ":3: field 'text' is a number, not text"),
        ("a.jsonl", GOOD + b'{"text": "c"}', ":3: no field 'label'; fields: text"),
        ("a.jsonl", GOOD + b'{"label": 1}', ":3: no field 'text'; fields: label"),
        ("a.jsonl", GOOD + b'{"text": "\\ud800", "label": 1}', ":3: half of a surrogate pair"),
        ("a.jsonl", GOOD + b'{"text": "c", "la', ":3: not JSON ("),
        ("a.jsonl", GOOD + b'["c", 1]', ":3: not a JSON object but a list"),
        ("a.jsonl", GOOD + b"[" * 100_000, ":3: not JSON"),
        ("a.jsonl", GOOD + b'{"text": "\xff", "label": 1}', ":3: not UTF-8"),
        ("a.jsonl", GOOD + b'{"text": "c", "label": "' + b"9" * 9999 + b'"}', ":3: label '999"),
        ("a.csv.gz", gzip.compress(as_csv(["text", "label"]) * 99)[:-40], "a.csv.gz: "),
        ("a.jsonl.xz", lzma.compress(GOOD * 99)[:-30], "truncated"),
        ("a.jsonl.zst", zstandard.ZstdCompressor().compress(GOOD)[:-5], "a.jsonl.zst: "),
        ("a.jsonl.xz", b"not xz at all", "a.jsonl.xz"),
        ("a.parquet", as_parquet()[:-20], "a.parquet: cannot be read"),
        ("a.parquet", b"", "a.parquet: cannot be read"),
        ("a.txt", b"words", "what kind of file is this? Expected yelp_polarity, hub:owner/name"),
        ("a", b"words", "what kind of file is this?"),
        ("a.csv.zip", b"PK", "what kind of file is this?"),
    ],
)  # fmt: skip
def test_a_bad_file_is_one_line(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    assert message in refused(tmp_path, name, content)


def test_a_folder_and_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a folder; expected yelp_polarity, hub:"):
        read_labelled(str(tmp_path))
    with pytest.raises(DataError, match=r"none\.csv: no such file; expected yelp_polarity"):
        read_labelled("none.csv")
    (tmp_path / "locked.csv").mkdir()
    with pytest.raises(DataError, match=r"locked\.csv: a folder"):
        read_labelled(str(tmp_path / "locked.csv"))


@pytest.fixture
def hub(serve: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> str:
    """A hub with Yelp's two splits, and one without labels."""
    splits = "".join(
        f"  - split: {split}\n    path: plain_text/{split}-*\n" for split in ("train", "test")
    )
    readme = f"---\nconfigs:\n- config_name: plain_text\n  data_files:\n{splits}---\n".encode()
    train = io.BytesIO()
    pq.write_table(pa.table({"x": ["a"], "text": ["not this"], "label": [0]}), train)
    files = {
        "README.md": readme,
        "plain_text/train-00000-of-00001.parquet": train.getvalue(),
        "plain_text/test-00000-of-00001.parquet": as_parquet(),
    }
    repos = {
        "fancyzhx/yelp_polarity": {"c" * 40: files},
        "some/lines": {"d" * 40: {"test.jsonl": as_jsonl(shift=1)}},
        "some/trainonly": {"e" * 40: {"train.jsonl": as_jsonl()}},
    }
    monkeypatch.setattr(Hub, "repos", repos)
    monkeypatch.setattr(Hub, "newest", {})
    monkeypatch.setattr(Hub, "gated", set())
    monkeypatch.setattr(Hub, "broken", set())
    monkeypatch.setattr(Hub, "log", [])
    return serve(Hub)


@pytest.mark.slow
def test_the_hubs_test_split_is_read(hub: str) -> None:
    """In a process of its own: HF_ENDPOINT counts when it starts."""
    code = (
        "import sys\n"
        "from budgetsweep.errors import DataError\n"
        "from trainer.sentiment.labelled import read_labelled\n"
        "for source in sys.argv[1:]:\n"
        "    try: data = read_labelled(source); print(data.checksum, len(data), data.description)\n"
        "    except DataError as error: print(error)\n"
        "print('torch' in sys.modules)"
    )
    sources = ["yelp_polarity", "hub:some/lines", "hub:some/trainonly"]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *sources], text=True, capture_output=True,
        timeout=120, check=False, env={**os.environ, "HF_ENDPOINT": hub, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    yelp, lines, train_only, torch_loaded = done.stdout.splitlines()
    checksum = LabelledTexts(TEXTS, LABELS, "").checksum
    assert yelp == f"{checksum} {len(TEXTS)} yelp_polarity at {'c' * 40}"
    assert lines == f"{checksum} {len(TEXTS)} hub:some/lines at {'d' * 40}"
    assert train_only.startswith("hub:some/trainonly: ")
    assert train_only.endswith("a split named test is needed")
    assert torch_loaded == "False"
