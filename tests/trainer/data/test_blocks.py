"""The split by hash and the cutting into blocks."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from budgetsweep.errors import DataError
from tests.support.data_files import decode, make_documents, write_jsonl
from trainer.data import blocks
from trainer.data.blocks import (
    HASH_RANGE,
    SplitRule,
    block_chars,
    choose_val_below,
    cut_blocks,
    document_hash,
    encode_block,
)
from trainer.data.sources import open_source
from trainer.data.tokenizers import ByteTokenizer


def test_the_hash_is_blake2b_of_the_text():
    # A constant: another value would silently move documents between the sides.
    assert document_hash("naïve") == 0xBEF26892EEEB4CDC


@pytest.mark.parametrize(
    ("expected", "wanted", "share"),
    [
        (100e6, 2_000_000, 0.02),
        (5e6, 2_000_000, 1 / 20),
        (1e9, 2_000_000, 1 / 100),
        (None, 2_000_000, 1 / 100),
        (0, 2_000_000, 1 / 100),
        (100e6, 4_000_000, 0.04),
    ],
)
def test_the_validation_share(expected: float | None, wanted: int, share: float):
    assert choose_val_below(expected, wanted) / HASH_RANGE == pytest.approx(share)


def test_blocks_grow_to_a_limit():
    sizes = [block_chars(i) for i in range(40)]
    assert sizes == sorted(sizes)
    assert (sizes[0], sizes[4], sizes[-1]) == (1 << 20, 1 << 21, 1 << 24)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.sampled_from(["", "x" * 50, "y" * 700, "é" * 90, None]), max_size=40), st.data())
def test_blocks_can_be_continued_from_any_end(
    tmp_path: Path, kinds: list[str | None], data: st.DataObject
):
    lines = ['{"text": 1}\n' if kind is None else f'{{"text": "{i} {kind}"}}\n'
             for i, kind in enumerate(kinds)]  # fmt: skip
    path = tmp_path / "a.jsonl"
    path.write_text("".join(lines))
    corpus = open_source(str(path))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "SMALLEST_BLOCK_CHARS", 300)
        patch.setattr(blocks, "LARGEST_BLOCK_CHARS", 1000)
        whole = list(cut_blocks(corpus))
        assert [b.index for b in whole] == list(range(len(whole)))
        found = [record.text for block in whole for record in block.records]
        assert found == [f"{i} {kind}" for i, kind in enumerate(kinds) if kind is not None]
        assert sum(block.bad_records for block in whole) == kinds.count(None)
        if whole:
            block = data.draw(st.sampled_from(whole))
            assert list(cut_blocks(corpus, block.end, block.index + 1)) == whole[block.index + 1 :]


def encode(path: Path, rule: SplitRule, want_val: bool = True):
    corpus = open_source(str(path))
    (block,) = cut_blocks(corpus)
    counted = []
    made = encode_block(
        block, ByteTokenizer(), rule, want_val, threading.Event(),
        lambda *numbers: counted.append(numbers),
    )  # fmt: skip
    assert made is not None
    assert np.sum(counted, axis=0).tolist()[1:] == [len(made.train), len(made.val)]
    return made


def test_duplicates_are_on_one_side(tmp_path: Path):
    documents = make_documents(200) * 3
    path = write_jsonl(tmp_path / "a.jsonl", documents)
    made = encode(path, SplitRule(val_below=HASH_RANGE // 3))
    train, val = decode(made.train), decode(made.val)
    assert sorted(train + val) == sorted(documents)
    assert set(train).isdisjoint(val)
    assert [t for t in documents if document_hash(t) < HASH_RANGE // 3] == val  # in their order
    assert (made.documents, made.val_documents, made.dropped_documents) == (
        len(train), len(val), 0,
    )  # fmt: skip
    assert made.lowest_hash == min(map(document_hash, documents))


def test_empty_documents_are_dropped(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": ""}\n{"text": " \\n"}\n{"text": "good"}\n')
    made = encode(path, SplitRule())
    assert decode(made.train) == ["good"]
    assert made.dropped_documents == 2


def test_a_stopped_worker_gives_nothing(tmp_path: Path):
    corpus = open_source(str(write_jsonl(tmp_path / "a.jsonl", make_documents(10))))
    (block,) = cut_blocks(corpus)
    stop = threading.Event()
    stop.set()
    made = encode_block(block, ByteTokenizer(), SplitRule(), True, stop, lambda *_: None)
    assert made is None


def test_a_hopeless_source_is_given_up_early(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"body": "x", "url": "y"}\n' * 1_000_000)
    with pytest.raises(DataError) as caught:
        list(cut_blocks(open_source(str(path))))
    assert str(caught.value) == (
        f"{path}: none of 1000 records can be used; the first: {path}:1 no field 'text'; "
        "fields: body, url; set data.text_field to one of them"
    )
    # One good record among the first thousand, and it goes on.
    path.write_text('{"body": "x"}\n' * 999 + '{"text": "y"}\n' + '{"body": "x"}\n' * 2000)
    assert sum(block.bad_records for block in cut_blocks(open_source(str(path)))) == 2999
