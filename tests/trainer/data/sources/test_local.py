"""Documents from every kind of local file, damaged ones included."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from budgetsweep.errors import DataError
from tests.support.data_files import PACK, make_documents, write_jsonl
from trainer.data.sources import Source, open_source, source_class
from trainer.data.sources.demo import DemoSource
from trainer.data.sources.hub import HubSource
from trainer.data.sources.local_files import find_files, kind_of


def texts(corpus: Source) -> list[str]:
    return [record.text for record in corpus.records() if record.text is not None]


def problems(corpus: Source) -> list[str]:
    return [
        f"{corpus.place(r.file, r.record)} {r.problem}" for r in corpus.records() if r.text is None
    ]


@pytest.mark.parametrize("packing", list(PACK))
@pytest.mark.parametrize("keep", [0.3, 0.9])
def test_a_cut_archive_is_an_error_and_not_less_text(tmp_path: Path, packing: str, keep: float):
    raw = PACK[packing](write_jsonl(tmp_path / "a.jsonl", make_documents(3000)).read_bytes())
    path = tmp_path / f"cut.jsonl{packing}"
    path.write_bytes(raw[: int(len(raw) * keep)])
    with pytest.raises(DataError, match=rf"cut\.jsonl{packing}: ends in the middle \(truncated\)"):
        list(open_source(str(path)).records())


@pytest.mark.parametrize("packing", ["", *PACK])
def test_json_lines_plain_and_in_several_frames(tmp_path: Path, packing: str):
    documents = make_documents(300)
    raw = write_jsonl(tmp_path / "a.jsonl", documents).read_bytes()
    path = tmp_path / f"b.jsonl{packing}"
    pack = PACK.get(packing, bytes)
    path.write_bytes(pack(raw[:5000]) + pack(raw[5000:]))
    corpus = open_source(str(path))
    assert texts(corpus) == documents
    assert problems(corpus) == []
    path.write_bytes(b"this is not compressed at all, " * 40)
    if packing:
        with pytest.raises(
            DataError, match=rf"b\.jsonl{packing}: (cannot be read|ends in)"
        ) as caught:
            list(open_source(str(path)).records())
        assert "\n" not in str(caught.value)


BAD_LINES = [
    (b'{"text": "cut', "not JSON (Unterminated string starting at at column 10)"),
    (b'["a list"]', "not a JSON object but a list"),
    (b'{"body": "x"}', "no field 'text'; fields: body"),
    (b'{"text": 5}', "field 'text' is a number, not text"),
    (b'{"text": null}', "field 'text' is null, not text"),
    (b'{"text": "caf\xe9"}', "not UTF-8"),
    (b'{"text": "x\\ud800"}', "half of a surrogate pair (character 1), no Unicode text"),
    (b"[" * 100_000, "not JSON"),
    (b'{"text": 1' + b"0" * 5000 + b"}", "not JSON"),
]


@pytest.mark.parametrize("packing", ["", ".gz"])
def test_bad_lines_are_named_and_passed_over(tmp_path: Path, packing: str):
    raw = b'{"text": "first"}\n\n' + b"\n".join(line for line, _ in BAD_LINES)
    raw += b'\r\n{"text": "last"}'
    path = tmp_path / f"bad.jsonl{packing}"
    path.write_bytes(PACK[packing](raw) if packing else raw)
    corpus = open_source(str(path))
    assert texts(corpus) == ["first", "last"]
    expected = [f"{path}:{n} {reason}" for n, (_, reason) in enumerate(BAD_LINES, 3)]
    assert problems(corpus) == expected


def test_other_field_and_byte_order_mark(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + '{"body": "naïve"}\n{"body": "b"}\n'.encode())
    assert texts(open_source(str(path), "body")) == ["naïve", "b"]


def test_one_json_list(tmp_path: Path):
    documents = make_documents(200)
    path = tmp_path / "a.json"
    path.write_text(json.dumps([{"text": t, "n": i} for i, t in enumerate(documents)], indent=1))
    corpus = open_source(str(path))
    assert texts(corpus) == documents
    after = [record.next for record in corpus.records()]
    assert after == [None] * 199 + [(1, 0)]


def test_parquet(tmp_path: Path):
    documents: list[str | None] = [*make_documents(700), None]
    path = tmp_path / "a.parquet"
    table = pa.table({"text": documents, "url": ["u"] * 701, "n": list(range(701))})
    pq.write_table(table, path, row_group_size=100)
    corpus = open_source(str(path))
    assert texts(corpus) == documents[:-1]
    assert problems(corpus) == [f"{path}: row 701 field 'text' is null, not text"]
    assert [r.text for r in corpus.records((0, 650))] == documents[650:]
    with pytest.raises(DataError, match=r"no field 'body'; fields: text, url, n; set data"):
        list(open_source(str(path), "body").records())
    assert "field 'n' is a number, not text" in problems(open_source(str(path), "n"))[0]
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"a\.parquet: cannot be read"):
        list(open_source(str(path)).records())


def test_a_folder_is_read_in_the_order_of_its_paths(tmp_path: Path):
    (tmp_path / "b").mkdir()
    (tmp_path / ".hidden").mkdir()
    write_jsonl(tmp_path / "b" / "x.jsonl", ["two"])
    write_jsonl(tmp_path / "a.jsonl", ["one"])
    write_jsonl(tmp_path / ".hidden" / "no.jsonl", ["hidden"])
    (tmp_path / "c.txt").write_text("three")
    pq.write_table(pa.table({"text": ["four"]}), tmp_path / "d.parquet")
    (tmp_path / "notes.md").write_text("not read")
    corpus = open_source(str(tmp_path))
    assert texts(corpus) == ["one", "two", "three", "four"]
    assert corpus.description == f"{tmp_path} (4 files)"
    assert texts(open_source(str(tmp_path / "*.jsonl"))) == ["one"]
    assert texts(open_source(str(tmp_path / "**" / "*.jsonl"))) == ["one", "two"]


def test_other_splits_are_left_out_where_some_file_says_train(tmp_path: Path):
    for name in ("c4-train.00000-of-00002", "c4-train.00001-of-00002", "c4-validation.00000-of-1",
                 "test", "contest", "latest_train"):  # fmt: skip
        write_jsonl(tmp_path / f"{name}.jsonl", [name])
    corpus = open_source(str(tmp_path))
    expected = ["c4-train.00000-of-00002", "c4-train.00001-of-00002", "contest", "latest_train"]
    assert texts(corpus) == expected
    assert corpus.description.endswith("(4 files; 2 of other splits left out)")
    for path in tmp_path.glob("*train*"):
        path.unlink()
    assert len(find_files(str(tmp_path))[0]) == 3  # nothing says train: all is taken


def test_names_with_pattern_characters_are_plain_names(tmp_path: Path):
    folder = tmp_path / "odd [1] #? {x}*"
    folder.mkdir()
    path = write_jsonl(folder / "a[b]*.jsonl", ["odd"])
    pq.write_table(pa.table({"text": ["names"]}), folder / "c[d].parquet")
    (folder / "e[f].json").write_text('[{"text": "too"}]')
    assert texts(open_source(str(path))) == ["odd"]
    assert texts(open_source(str(folder))) == ["odd", "names", "too"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("gone.txt", "no such file or folder; expected c4, demo, hub:owner/name, or a path of"),
        ("*.gone", "no file matches this pattern"),
        (".", "no file in it that can be read; expected .txt, .jsonl"),
        ("book.pdf", "what kind of file is this"),
        ("hub:", "expected hub:owner/name"),
        ("hub:a/b/c", "expected hub:owner/name"),
        ("hub:/b", "expected hub:owner/name"),
    ],
)
def test_a_wrong_source_is_one_line(tmp_path, monkeypatch, source: str, message: str):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "book.pdf").write_bytes(b"%PDF")
    with pytest.raises(DataError) as caught:
        open_source(source)
    assert str(caught.value).startswith(f"{source}: {message}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "repo", "config"),
    [("c4", "allenai/c4", "en"), ("hub:allenai/c4:en", "allenai/c4", "en"),
     ("hub:owner/name", "owner/name", None), ("hub:imdb", "imdb", None)],
)  # fmt: skip
def test_hub_names(name: str, repo: str, config: str | None):
    assert source_class(name) is HubSource
    assert (HubSource(name).repo, HubSource(name).config) == (repo, config)


def test_kinds():
    assert kind_of(Path("A.JSONL.GZ")) == "json"
    assert kind_of(Path("a.b.txt")) == "text"
    assert kind_of(Path("a.parquet.gz")) is None
    assert kind_of(Path("a.gz")) is None
    assert kind_of(Path("plain")) is None


# Text files ---------------------------------------------------------------------------------------

PARAGRAPHS = st.lists(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r"), max_size=400),
    max_size=30,
).map("\n\n".join)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(PARAGRAPHS, st.data())
def test_pieces_of_a_text_lose_nothing_and_can_be_resumed(
    tmp_path: Path, text: str, data: st.DataObject
):
    path = tmp_path / "a.txt"
    path.write_bytes(text.encode())
    corpus = open_source(str(path))
    records = list(corpus.records())
    # All but line ends at the edges of pieces is there, in order.
    expected = text.removeprefix("\ufeff").replace("\n", "")
    assert "".join(r.text or "" for r in records).replace("\n", "") == expected
    resumable = [i for i, record in enumerate(records) if record.next is not None]
    if resumable:
        i = data.draw(st.sampled_from(resumable))
        assert list(corpus.records(records[i].next)) == records[i + 1 :]


def test_a_text_is_cut_at_blank_lines(tmp_path: Path):
    paragraphs = [f"Paragraph {i}.\n" + "words and words\n" * 8 for i in range(400)]
    path = tmp_path / "book.txt"
    path.write_text("\n".join(paragraphs))
    pieces = texts(open_source(str(path)))
    assert len(pieces) > 100
    assert all(piece.startswith("Paragraph ") and piece.endswith("words") for piece in pieces)
    assert max(map(len, pieces)) < 1000


def test_text_without_line_ends_is_cut_at_spaces(tmp_path: Path):
    path = tmp_path / "long.txt"
    path.write_text("word " * 100_000)
    pieces = texts(open_source(str(path)))
    assert len(pieces) > 20
    assert "".join(pieces) == "word " * 100_000
    assert all(piece.startswith("word ") for piece in pieces)
    path.write_text("x" * 500_000)  # not even a space
    pieces = texts(open_source(str(path)))
    assert "".join(pieces) == "x" * 500_000
    assert max(map(len, pieces)) <= 8 * 4096


def test_text_in_another_encoding(tmp_path: Path):
    latin = tmp_path / "latin.txt"
    lines = ["plain ascii line", "café crème"] + ["plain ascii line"] * 200
    latin.write_bytes("\n\n".join(lines).encode("latin-1"))
    corpus = open_source(str(latin))
    assert problems(corpus) == [f"{latin}:3 not UTF-8"]
    assert "".join(texts(corpus)).count("plain") > 150  # the other pieces are there
    utf16 = tmp_path / "utf16.txt"
    utf16.write_text("hello\nworld\n", encoding="utf-16")
    with pytest.raises(DataError, match=r"utf16\.txt: UTF-16 text; save it as UTF-8"):
        list(open_source(str(utf16)).records())
    binary = tmp_path / "binary.txt"
    binary.write_bytes(b"abc\0def")
    assert problems(open_source(str(binary))) == [f"{binary}:1 not text (a NUL character)"]


def test_windows_line_ends(tmp_path: Path):
    (tmp_path / "a.txt").write_bytes(b"one\r\ntwo\r\n\r\nthree")
    assert texts(open_source(str(tmp_path / "a.txt"))) == ["one\ntwo\n\nthree"]


# The demo -----------------------------------------------------------------------------------------


def test_the_demo_is_a_real_corpus_in_a_fixed_order():
    corpus = open_source("demo")
    assert isinstance(corpus, DemoSource)
    found = texts(corpus)
    assert found == texts(open_source("demo"))
    assert 2_000_000 < sum(map(len, found)) < 40_000_000
    assert len(found) > 200
    parts = {part for path in corpus.paths for part in path.relative_to(corpus.root).parts[:-1]}
    assert parts.isdisjoint({"test", "tests", "idlelib", "site-packages", "__pycache__"})
    assert corpus.identity() == DemoSource("demo").identity()
    assert any("argparse" in corpus.place(r.file, r.record) for r in corpus.records())
    assert next(corpus.records((5, 0))).text == found[5]


def test_a_standard_library_in_a_zip_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    archive = tmp_path / "python311.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("abc.py", "x = 1")
    for root in (archive, tmp_path / "nowhere"):
        monkeypatch.setattr(DemoSource, "root", root)
        with pytest.raises(DataError, match="demo: no Python source files under"):
            open_source("demo")
