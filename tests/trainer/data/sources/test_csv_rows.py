"""CSV files: rows of every kind of damage, and places to go on from."""

from __future__ import annotations

import csv
import io
import itertools
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from budgetsweep.errors import DataError
from tests.support.data_files import PACK, prepared, write_jsonl
from tests.trainer.data.sources.test_local import problems, texts
from trainer.data.held_out import read_held_out
from trainer.data.sources import csv_rows, open_source
from trainer.data.sources.csv_rows import csv_records
from trainer.data.sources.local_files import find_files
from trainer.data.sources.records import Record, local_lines

HEADER = b"id,text\n"


def write(path: Path, raw: bytes) -> Path:
    path.write_bytes(raw)
    return path


def read(raw: bytes, first: int = 0) -> list[Record]:
    lines = raw.removesuffix(b"\n").split(b"\n")
    return list(csv_records(lines, "x.csv", 0, first, "text"))


def as_csv(rows: list[tuple[str, str]], end: str = "\n", quoting: int = csv.QUOTE_MINIMAL) -> bytes:
    out = io.StringIO()
    csv.writer(out, lineterminator=end, quoting=quoting).writerows(rows)
    return out.getvalue().encode()


FIELD = st.text(st.sampled_from('ab",\n é日'), max_size=12)
ROWS = st.lists(st.tuples(FIELD, FIELD.map(lambda text: "x" + text)), max_size=12)
QUOTING = st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL])


@given(ROWS, QUOTING, st.booleans(), st.data())
def test_what_the_csv_module_writes_is_read_and_can_be_resumed(
    rows: list[tuple[str, str]], quoting: int, windows: bool, data: st.DataObject
):
    raw = HEADER + as_csv(rows, quoting=quoting)
    if windows:
        raw = raw.replace(b"\n", b"\r\n")
    lines = [line.removesuffix(b"\r") for line in raw.split(b"\n")]
    records = list(csv_records(lines, "x.csv", 3, 0, "text"))
    assert [record.text for record in records] == [text for _, text in rows]
    if records:
        i = data.draw(st.integers(0, len(records) - 1))
        after = records[i].next
        assert after is not None
        assert after[0] == 3
        assert list(csv_records(lines, "x.csv", 3, after[1], "text")) == records[i + 1 :]


NOISE = st.lists(
    st.sampled_from([b'"', b'""', b",", b"\n", b"a", b" ", b"\xff", b"\0", b"\r", b'a,"b'])
).map(b"".join)


@settings(max_examples=300)
@given(NOISE, st.data())
def test_anything_is_read_to_its_end_and_can_be_resumed_anywhere(raw: bytes, data: st.DataObject):
    records = read(HEADER + raw)
    places = [1, *(record.next[1] for record in records if record.next)]
    assert len(places) == len(records) + 1
    for record, start, end in zip(records, places, places[1:], strict=False):
        assert start <= record.record < end
        assert (record.text is None) == (record.problem is not None)
    if records:
        i = data.draw(st.integers(0, len(records) - 1))
        assert read(HEADER + raw, places[i + 1]) == records[i + 1 :]


WORDS = st.text(st.sampled_from('ab",\n '), max_size=12).map(lambda text: "x" + text)


@settings(max_examples=200)
@given(st.lists(st.tuples(WORDS, WORDS), max_size=5), NOISE, st.integers(0, 5))
def test_good_rows_around_a_broken_one_are_all_read(
    rows: list[tuple[str, str]], noise: bytes, at: int
):
    noise = noise.replace(b"\n", b" ")  # one line of noise
    before, after = (as_csv(part, quoting=csv.QUOTE_ALL) for part in (rows[:at], rows[at:]))
    found = [record.text for record in read(HEADER + before + noise + b"\n" + after)]
    good = [text for _, text in rows]
    assert found[: len(good[:at])] == good[:at]
    assert found[len(found) - len(good[at:]) :] == good[at:]
    assert len(found) <= len(good) + 1


BAD_ROWS = [
    (b"one", "1 fields, expected 2"),
    (b"one,two,three", "3 fields, expected 2"),
    (b"1,caf\xe9", "not UTF-8"),
    (b"1,a\0b", "not text (a NUL character)"),
    (b"1,", "no text in column 'text'"),
    (b'1," \t"', "no text in column 'text'"),
    (b'1,"text" more', "text after a closing quote"),
    (b'"a"b,text', "text after a closing quote"),
    (b"1,a\rb", "a carriage return outside quotes"),
    (b'"caf\xe9","a","b"', "3 fields, expected 2"),
]


@pytest.mark.parametrize("packing", ["", ".gz"])
@pytest.mark.parametrize("ends", [b"\n", b"\r\n"])
def test_bad_rows_are_named_and_passed_over(tmp_path: Path, packing: str, ends: bytes):
    lines = [b"\xef\xbb\xbfid,text"]
    for row, _ in BAD_ROWS:
        lines += [row, b"1,good, but".replace(b", ", b" "), b""]
    raw = ends.join(lines)
    path = write(tmp_path / f"bad.csv{packing}", PACK[packing](raw) if packing else raw)
    corpus = open_source(str(path))
    assert texts(corpus) == ["good but"] * len(BAD_ROWS)
    expected = [f"{path}:{3 * i + 2} {reason}" for i, (_, reason) in enumerate(BAD_ROWS)]
    found = problems(corpus)
    assert found[:-1] == expected[:-1]
    assert found[-1].startswith(f"{path}:{3 * len(BAD_ROWS) - 1} ")


def test_the_text_of_a_broken_row_is_not_taken_for_rows():
    prose = 'He said, "oh"\nRed, green\n\nand \xe9, too.\n","\nlast line"\n'.encode("latin-1")
    raw = HEADER + b'1,good\n2,"open" quote, red\n' + prose + b'"3","good, again\nreally"\n4,fine\n'
    records = read(raw)
    assert [r.text for r in records] == ["good", None, "good, again\nreally", "fine"]
    bad = records[1]
    assert (bad.record, bad.next) == (2, (0, 9))
    assert bad.problem == "text after a closing quote; left out to line 9"


def test_a_row_of_several_lines_that_swallowed_another_gives_it_back():
    raw = HEADER + b'1,"open\n2,"good",x\n'  # one row of the wrong number, or two
    assert [(r.record, r.problem) for r in read(raw)] == [
        (1, "text after a closing quote; left out to line 3")
    ]
    raw = HEADER + b'1,"open\nmore",x\n2,good\n'
    assert [r.text for r in read(raw)] == [None, "good"]
    assert read(raw)[0].problem == "3 fields, expected 2; left out to line 3"


@pytest.mark.parametrize("start", [b'1,"', b'"'])
def test_an_open_quote_swallows_no_file(start: bytes, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(csv_rows, "LONGEST_ROW_BYTES", 1000)
    rows = b"".join(b"%d,row\n" % i for i in range(5000))
    records = read(HEADER + start + b"open\n" + rows)
    assert [r.text for r in records] == [None] + ["row"] * 5000
    assert records[0].problem == "longer than 0 MiB (a quoted field is not closed?)"
    # At the end of the file likewise.
    records = read(HEADER + rows[:350] + start + b"open\n9,row\n")
    assert [r.text for r in records][-2:] == [None, "row"]
    assert records[-2].problem == "a quoted field is not closed"


def test_no_more_than_the_limit_is_read_ahead(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(csv_rows, "LONGEST_ROW_BYTES", 10_000)
    given = itertools.count()
    rows = (b"2,x" + b"y" * 97 for _ in zip(range(20_000), given, strict=False))
    lines = itertools.chain([b"id,text", b'1,"open'], rows)
    records = csv_records(lines, "x.csv", 0, 0, "text")
    assert next(records).text is None
    assert next(given) <= 102
    assert sum(1 for _ in records) == 20_000


def test_a_line_without_an_end_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(csv_rows, "LONGEST_ROW_BYTES", 1 << 20)
    path = tmp_path / "a.csv"
    path.write_bytes(HEADER + b"1," + b"x" * (9 << 20) + b"\n2,good\n")
    ((file,), _) = find_files(str(path))
    lengths = [len(line) for line in local_lines(file, 1 << 20)]
    assert 1 << 20 < lengths[1] < 3 << 20
    assert lengths[2] == 6
    corpus = open_source(str(path))
    assert texts(corpus) == ["good"]
    assert problems(corpus) == [f"{path}:2 longer than 1 MiB (a quoted field is not closed?)"]


def test_a_field_longer_than_the_librarys_limit_is_text():
    limit = csv.field_size_limit()
    assert limit < 200_000
    assert [r.text for r in read(HEADER + b"1," + b"x" * 200_000)] == ["x" * 200_000]
    assert csv.field_size_limit() == limit


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "empty; expected headline, title and text (pairs), or a column 'text'"),
        (b"a;text;b\n1;2;3\n", "columns 'a;text;b'; expected headline, title and text (pairs), or"),
        (b"title,headline\n1,2\n", "columns 'title', 'headline'; expected headline, title and"),
        (b'"a,text\n1,2\n', "the header cannot be read (a quoted field is not closed); expected"),
        (b"a,text\r1,2\r", "the header cannot be read (a carriage return outside quotes); "),
        (b"caf\xe9,text\n", "the header cannot be read (not UTF-8); expected"),
        (b"\n\n", "columns ; expected"),
        ("a,text\n".encode("utf-16"), "UTF-16 text; save it as UTF-8"),
    ],
)
def test_wrong_columns_are_one_line(tmp_path: Path, raw: bytes, message: str):
    path = write(tmp_path / "a.csv", raw)
    for use in (lambda: open_source(str(path)), lambda: prepared(path)):
        with pytest.raises(DataError) as caught:
            use()
        assert str(caught.value).startswith(f"{path}: {message}")
        assert "\n" not in str(caught.value)


def test_columns_in_any_order_and_others_beside_them():
    text = b"a long text of this article"
    raw = b"n, Title ,TEXT,sectionLabel,headline\n1,How to,%s,x,Do it.\n" % text
    (record,) = read(raw)
    assert (record.text, record.source) == (text.decode(), "How to\nDo it.")
    assert record.documents == ["How to\nDo it.", text.decode()]


def test_another_field_makes_plain_text(tmp_path: Path):
    path = write(tmp_path / "a.csv", b"headline,title,text\nDo it.,How to,A long enough text\n")
    assert open_source(str(path)).pairs
    corpus = open_source(str(path), "headline")
    assert not corpus.pairs
    assert texts(corpus) == ["Do it."]
    no_title = write(tmp_path / "b.csv", b"headline,title,text\nDo it., ,A long enough text\n")
    assert problems(open_source(str(no_title))) == [f"{no_title}:2 no text in column 'title'"]


def test_files_of_pairs_and_of_plain_text_do_not_mix(tmp_path: Path):
    write(tmp_path / "a.csv", b"headline,title,text\nDo it.,How to,A long enough text\n")
    write(tmp_path / "b.csv", b"text,headline,title\nA long enough text,Do it.,How to\n")
    assert len(texts(open_source(str(tmp_path)))) == 2
    write(tmp_path / "c.csv", HEADER)
    with pytest.raises(DataError, match=r"c\.csv: some files of this source have the columns"):
        open_source(str(tmp_path))


def test_tables_beside_other_files_are_passed_over(tmp_path: Path):
    write(tmp_path / "about.csv", b"no,columns\n")
    write_jsonl(tmp_path / "a.jsonl", ["one"])
    assert texts(open_source(str(tmp_path))) == ["one"]
    assert [f.path.name for f in find_files(str(tmp_path / "*.csv"))[0]] == ["about.csv"]


def test_a_csv_file_can_be_measured_on(tmp_path: Path):
    path = write(tmp_path / "a.csv", b"headline,title,text\nDo it.,How to,A long enough text\n")
    held_out = read_held_out(path, "bytes", 257)
    assert list(held_out.ids) == [*b"How to\nDo it.", 256, *b"A long enough text", 256]
