"""Pairs in a token stream, against a naive reading; batches as a pure function of (seed, step)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from budgetsweep.errors import DataError
from trainer.data import sampler as sampler_module
from trainer.data.pairs import (
    PairBatch,
    PairIndex,
    PairSampler,
    sequential_pairs,
    target_bytes_per_token,
)
from trainer.data.shards.tokens import TokenArray

EOT = 9
CPU = torch.device("cpu")
Documents = list[list[int]]

DOCUMENTS = st.lists(st.lists(st.integers(0, 8), max_size=6), max_size=20)


def stream(documents: Documents) -> list[int]:
    return [i for document in documents for i in [*document, EOT]]


def index_of(documents: Documents) -> PairIndex:
    return PairIndex(TokenArray.from_arrays([stream(documents)]), EOT)


def numbered(n: int) -> PairIndex:
    """Pairs whose source and target are their number, n at most 9 * 9."""
    return index_of([[i // 9, i % 9] for i in range(n) for _ in range(2)])


def numbers(batch: PairBatch) -> list[int]:
    return [9 * a + b for a, b in batch.source_ids[:, :2].tolist()]


def naive(
    documents: Documents, s: int, t: int
) -> list[tuple[list[int], list[int], list[int], list[int]]]:
    """(source, target, source mask, target mask) of each pair, written out the slow way."""
    rows = []
    for source, target in zip(documents[0::2], documents[1::2], strict=False):
        source, target = source[:s], ([EOT, *target, EOT])[: t + 1]
        rows.append((
            source + [EOT] * (s - len(source)),
            target + [EOT] * (t + 1 - len(target)),
            [1] * len(source) + [0] * (s - len(source)),
            [1] * len(target) + [0] * (t + 1 - len(target)),
        ))  # fmt: skip
    return rows


@given(documents=DOCUMENTS, rest=st.lists(st.integers(0, 8), max_size=3), data=st.data())
def test_the_index_finds_every_pair(
    documents: Documents, rest: list[int], data: st.DataObject
) -> None:
    ids = stream(documents) + rest
    cuts = sorted(data.draw(st.lists(st.integers(0, len(ids)), max_size=4)))
    shards = [ids[a:b] for a, b in zip([0, *cuts], [*cuts, len(ids)], strict=True)]
    limit = data.draw(st.integers(0, len(ids)))
    whole = TokenArray.from_arrays(shards)
    index = PairIndex(TokenArray(whole.parts, limit), EOT)
    # The naive reference: split at end-of-text and drop what is not whole.
    texts: Documents = [[]]
    for i in ids[:limit]:
        if i == EOT:
            texts.append([])
        else:
            texts[-1].append(i)
    texts = texts[:-1]
    expected = list(zip(texts[0::2], texts[1::2], strict=False))
    found = [tuple(part.tolist() for part in index.pair(i)) for i in range(len(index))]
    assert found == expected
    assert index.lengths.tolist() == [[len(part) for part in pair] for pair in expected]
    for wrong in (-1, len(index)):
        with pytest.raises(IndexError):
            index.pair(wrong)


@given(documents=DOCUMENTS, size=st.integers(1, 4), s=st.integers(1, 7), t=st.integers(1, 8))
def test_a_sequential_pass_gives_every_pair_once_in_order(
    documents: Documents, size: int, s: int, t: int
) -> None:
    index = index_of(documents)
    batches = list(sequential_pairs(index, size, s, t, CPU))
    expected = naive(documents, s, t)
    assert [len(batch.source_ids) for batch in batches[:-1]] == [size] * max(len(batches) - 1, 0)
    found = [
        tuple(part[row].tolist() for part in batch)
        for batch in batches
        for row in range(len(batch.source_ids))
    ]
    assert found == expected
    for batch in batches:
        assert batch.source_ids.dtype == batch.target_ids.dtype == torch.int64
        assert batch.source_ids.shape == batch.source_mask.shape == (len(batch.source_ids), s)
        assert batch.target_ids.shape == batch.target_mask.shape == (len(batch.source_ids), t + 1)


@given(
    n=st.integers(1, 60), size=st.integers(1, 25), seed=st.integers(0, 2**32 - 1),
    micros=st.integers(1, 3), block=st.integers(1, 70),
)  # fmt: skip
def test_every_pair_comes_once_before_any_comes_again(
    n: int, size: int, seed: int, micros: int, block: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampler_module, "_BLOCK", block)
        sampler = PairSampler(numbered(n), size, 3, 3, seed, micros)
        steps = -(-3 * n // (size * micros))
        drawn = [i for step in range(steps) for micro in range(micros)
                 for i in numbers(sampler.batch(step, micro, CPU))]  # fmt: skip
    for epoch in range(3):
        assert sorted(drawn[epoch * n : (epoch + 1) * n]) == list(range(n))


def test_batches_have_the_shape_of_the_naive_rows() -> None:
    documents: Documents = [[1, 2, 3], [4, 5], [], [6], [7], [], [1] * 9, [2] * 9]
    sampler = PairSampler(index_of(documents), 4, 4, 5, 0)
    batch = sampler.batch(0, 0, CPU)
    rows = [tuple(part[row].tolist() for part in batch) for row in range(4)]
    assert sorted(rows) == sorted(naive(documents, 4, 5))
    assert ([EOT] * 4, [EOT, 6, EOT, EOT, EOT, EOT], [0] * 4, [1, 1, 1, 0, 0, 0]) in rows
    assert ([1] * 4, [EOT, 2, 2, 2, 2, 2], [1] * 4, [1] * 6) in rows  # cut: no end-of-text


def test_no_pair_is_a_clear_error() -> None:
    for documents in ([], [[1, 2]]):
        with pytest.raises(DataError, match="no whole pair: prepare more"):
            PairSampler(index_of(documents), 2, 3, 3, 0)
        assert list(sequential_pairs(index_of(documents), 2, 3, 3, CPU)) == []


@given(documents=DOCUMENTS, t=st.integers(1, 8))
def test_bytes_of_the_target_text_are_those_of_the_predicted_ids(
    documents: Documents, t: int
) -> None:
    table = np.array([1, 2, 3, 1, 2, 3, 1, 2, 3, 0], np.uint16)
    index = index_of(documents)
    n_bytes = n_tokens = 0
    for batch in sequential_pairs(index, 2, 3, t, CPU):
        predicted = batch.target_ids[:, 1:][batch.target_mask[:, 1:] == 1]
        n_bytes += sum(int(table[i]) for i in predicted)
        n_tokens += len(predicted)
    expected = n_bytes / n_tokens if n_bytes else None
    assert target_bytes_per_token(index, t, table) == expected
