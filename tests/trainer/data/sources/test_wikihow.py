"""Cleaning of WikiHow's articles, and pairs from wikihowAll.csv to token shards."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from budgetsweep.errors import DataError
from tests.support.data_files import decode, prepared, write_jsonl
from trainer.data.blocks import document_hash
from trainer.data.cache import list_prepared
from trainer.data.pairs import PairIndex
from trainer.data.shards.manifest import load_manifest, save_manifest
from trainer.data.shards.tokens import TokenArray, TokenData
from trainer.data.sources.wikihow import (
    clean_headline,
    clean_text,
    clean_title,
    make_pair,
    split_key,
)

Article = tuple[str, str, str]


def articles(n: int, copies: int = 1, first: int = 0) -> list[Article]:
    """(headline, title, text); each title has some copies, numbered as in the published file."""
    return [
        (
            f"\nDo {i}.,\nThen do {copy}, naïvely.\n",
            f"How to Do Thing {i} Well" + (str(copy) if copies > 1 else ""),
            f' Article {i}-{copy} says "do it", 日本.\n\n,It has lines, {"and more " * (i % 7)}.\n',
        )
        for i in range(first, first + n)
        for copy in range(1, copies + 1)
    ]


def csv_bytes(rows: list[Article]) -> bytes:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(rows)
    return out.getvalue().encode()


def write_csv(path: Path, rows: list[Article]) -> Path:
    path.write_bytes(b"headline,title,text\n" + csv_bytes(rows))
    return path


def found(data: TokenData, side: TokenArray) -> list[tuple[str, str]]:
    """Pairs of one side as text."""
    index = PairIndex(side, data.eot)
    return [tuple(bytes(ids.astype("u1")).decode() for ids in index.pair(i))
            for i in range(len(index))]  # fmt: skip


# Cleaning -----------------------------------------------------------------------------------------


def test_a_row_of_the_published_file():
    headline = "\nKeep related supplies in the same area.,\nMake an effort, always.,\n\n \nPlan.\n"
    text = (
        "If you're a photographer, keep lenses together. Some ideas include:\n\n\n\n\n"
        "Essential supplies area.\n\n,  Dedicated work area .\r\n\r\n\r\n\r\nTucked away..\n,Done."
    )
    assert make_pair(headline, "How to Be an Organized Artist1", text) == (
        "How to Be an Organized Artist\n"
        "Keep related supplies in the same area.\nMake an effort, always.\nPlan.",
        "If you're a photographer, keep lenses together. Some ideas include:\n\n"
        "Essential supplies area.\nDedicated work area .\n\nTucked away.\nDone.",
    )


PROSE = st.text(st.sampled_from(".,\n abC"), max_size=60)


@given(PROSE, PROSE)
def test_cleaning_is_that_of_process_py_but_for_white_space(headline: str, text: str):
    # The two lines of the published process.py, and nothing but white space between them and ours.
    assert "".join(clean_headline(headline).split()) == "".join(headline.replace(".,", ".").split())
    assert "".join(clean_text(text).split()) == "".join(
        re.sub(r"[.]+[\n]+[,]", ".\n", text).split()
    )
    assert "\n\n" not in clean_headline(headline)
    assert "\n\n\n" not in clean_text(text)
    for cleaned in (clean_headline(headline), clean_text(text)):
        assert [line.strip() for line in cleaned.split("\n")] == cleaned.split("\n")
        assert cleaned == cleaned.strip()


@given(st.integers(0, 60), st.integers(1, 60))
@example(3, 4)
def test_an_article_is_dropped_where_its_headline_is_not_clearly_shorter(a: int, b: int):
    kept = make_pair("h" * a, "How to", "t" * b) is not None
    assert kept == (0 < a < 0.75 * b)


def test_hostile_articles_take_no_long_time():
    n = 1_000_000
    assert clean_text("." * n + "\n,") == "."
    assert clean_text("." * n) == "." * n
    assert clean_text("\n" * n + ",") == ","
    assert clean_title("a1" * n) == "a1" * (n - 1) + "a"
    assert clean_title("1" * n) == "1" * n


def test_an_article_of_marks_alone_is_dropped():
    assert make_pair(" \n ", "How to", "a long text") is None
    assert make_pair("x", "How to", " \n\n\n ") is None


@pytest.mark.parametrize(
    ("title", "cleaned"),
    [
        ("How to X1", "How to X"),
        ("How to Draw a Cat12", "How to Draw a Cat"),
        (" How  to\nFry (Quickly)3 ", "How to Fry (Quickly)"),
        ('How to Say "Yes"2', 'How to Say "Yes"'),
        ("How to Use Windows 10", "How to Use Windows 10"),
        ("How to Play in 4/4", "How to Play in 4/4"),
        ("How to Make an MP3", "How to Make an MP3"),
        ("How to Make an MP32", "How to Make an MP3"),
        ("How to Amp3", "How to Amp"),
        ("How to Be Naïve2", "How to Be Naïve"),
        ("2048", "2048"),
        ("How to Count to 1.5", "How to Count to 1.5"),
    ],
)
def test_titles_lose_the_number_of_a_duplicate(title: str, cleaned: str):
    assert clean_title(title) == cleaned


def test_the_side_is_that_of_the_title():
    titles = ("How to Use an RV", "how to use an RV1", "How To Use  an RV2", "How to use\nan rv33")
    assert {split_key(f"{clean_title(t)}\nanything {t}") for t in titles} == {"how to use an rv"}
    assert split_key("How to Play Halo 2\nx") != split_key("How to Play Halo 3\nx")


# From the file to the shards ----------------------------------------------------------------------


@pytest.mark.usefixtures("small_blocks")
def test_pairs_lie_whole_on_the_side_of_their_title(tmp_path: Path):
    rows = articles(150, copies=3)
    data = prepared(write_csv(tmp_path / "wikihowAll.csv", rows))
    manifest = load_manifest(data.folder)
    assert data.pairs
    assert manifest.pairs
    assert manifest.val_below is not None
    expected: dict[bool, list[tuple[str, str]]] = {True: [], False: []}
    for headline, title, text in rows:
        pair = make_pair(headline, title, text)
        assert pair is not None
        name = pair[0].split("\n")[0].casefold()
        expected[document_hash(name) < manifest.val_below].append(pair)
    assert found(data, data.train) == expected[False]
    assert found(data, data.val) == expected[True]
    titles = [{source.split("\n")[0] for source, _ in expected[side]} for side in (True, False)]
    assert titles[0]
    assert titles[0].isdisjoint(titles[1])
    assert len(expected[True]) == 3 * len(titles[0])  # all copies
    assert len(manifest.train) > 3  # several shards
    # The same tokens are plain text for a decoder.
    assert decode(data.train) == [text for pair in expected[False] for text in pair]
    assert manifest.documents == len(expected[False])
    assert manifest.val_documents == len(expected[True])
    info = list_prepared()[0]
    assert (info.pairs, info.documents) == (True, 450)


def test_a_separate_validation_file_is_held_out_by_title(tmp_path: Path):
    train = write_csv(tmp_path / "train.csv", articles(30))
    other = [("another headline.", title, text + "and something else") for _, title, text in
             articles(5, first=10)] + articles(5, first=100)  # fmt: skip
    val = write_csv(tmp_path / "val.csv", other)
    data = prepared(train, validation=str(val))
    held_out = {title for _, title, _ in articles(5, first=10)}
    assert found(data, data.val) == [make_pair(*row) for row in other]
    expected = [make_pair(*row) for row in articles(30) if row[1] not in held_out]
    assert found(data, data.train) == expected
    with pytest.raises(DataError, match="every title is also in"):
        prepared(val, validation=str(val))


def test_training_and_validation_are_both_pairs_or_neither(tmp_path: Path):
    pairs = write_csv(tmp_path / "pairs.csv", articles(30))
    plain = write_jsonl(tmp_path / "plain.jsonl", ["text"] * 9)
    for source, other in ((pairs, plain), (plain, pairs)):
        with pytest.raises(DataError) as caught:
            prepared(source, validation=str(other))
        assert str(caught.value).startswith(f"{plain}: no pairs, but {pairs} has them; ")
        assert "\n" not in str(caught.value)
    assert list_prepared() == []


def test_two_titles_can_be_split_and_one_cannot(tmp_path: Path):
    data = prepared(write_csv(tmp_path / "b.csv", articles(2, copies=3)))
    assert [len(found(data, side)) for side in (data.train, data.val)] == [3, 3]
    path = write_csv(tmp_path / "a.csv", articles(1, copies=4))
    with pytest.raises(DataError, match="only one title, so nothing is left to validate on"):
        prepared(path)


def test_tokens_of_other_columns_are_not_extended(tmp_path: Path):
    path = write_csv(tmp_path / "a.csv", articles(30))
    folder = prepared(path).folder
    save_manifest(folder, replace(load_manifest(folder), pairs=False, exhausted=False))
    with pytest.raises(DataError, match=r"prepared from other columns of .*; delete this folder"):
        prepared(path)
