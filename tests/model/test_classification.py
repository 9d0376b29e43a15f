"""Two classes from the logits of two words, against the formula written out in plain Python."""

from __future__ import annotations

import math
import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.classification import classify_binary_sentiment, positive_probabilities

LOGITS = torch.tensor(
    [
        [1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
        [-1.0, -2.0, -3.0, -4.0, -5.0, -6.0],
        [1.0, -1.0, 2.0, -2.0, 3.0, -3.0],
    ]
)
# Quarters: their differences are exact, so ties are ties in any order of rounding.
FLOATS = st.integers(-60, 60).map(lambda n: n / 4)
TABLES = st.integers(2, 5).flatmap(
    lambda v: st.lists(st.lists(FLOATS, min_size=v, max_size=v), min_size=1, max_size=9)
)


def by_hand(rows: list[list[float]], negative: int, positive: int, calibrate: bool) -> list[int]:
    p = [1 / (1 + math.exp(row[negative] - row[positive])) for row in rows]
    boundary = statistics.median(p) if calibrate else 0.5
    return [int(value > boundary) for value in p]


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [((1, 2), [1, 0, 1]), ((2, 1), [0, 1, 0]), ((0, 4), [1, 0, 1]), ((0, 3), [1, 0, 0])],
)
def test_the_larger_logit_wins(tokens: tuple[int, int], expected: list[int]) -> None:
    for ids in (list(tokens), torch.tensor(tokens)):
        for logits in (LOGITS, LOGITS.half(), LOGITS.tolist()):
            predictions = classify_binary_sentiment(logits, ids)
            assert predictions == expected
            assert all(type(prediction) is int for prediction in predictions)


@given(TABLES, st.data(), st.booleans())
def test_it_is_the_softmax_of_two_and_the_median(
    rows: list[list[float]], data: st.DataObject, calibrate: bool
) -> None:
    ids = data.draw(st.permutations(range(len(rows[0]))))[:2]
    expected = by_hand(rows, *ids, calibrate)
    assert classify_binary_sentiment(rows, ids, calibrate) == expected


@given(st.lists(FLOATS, min_size=1, max_size=20, unique=True), st.integers(-20, 20))
def test_calibration_makes_half_positive_whatever_the_words_weigh(
    margins: list[float], prior: int
) -> None:
    rows = [[0.0, margin + prior / 4] for margin in margins]
    calibrated = classify_binary_sentiment(rows, [0, 1], calibrate=True)
    assert sum(calibrated) == len(margins) // 2
    assert calibrated == classify_binary_sentiment([[0.0, m] for m in margins], [0, 1], True)


@pytest.mark.parametrize("calibrate", [False, True])
def test_ties_are_negative(calibrate: bool) -> None:
    assert classify_binary_sentiment([[2.0, 2.0]] * 4, [0, 1], calibrate) == [0, 0, 0, 0]
    # One row is its own median; without calibration it is what its logits say.
    assert classify_binary_sentiment([[0.0, 1.0]], [0, 1], calibrate) == [int(not calibrate)]


def test_one_certain_word_is_certain_and_no_rows_are_no_classes() -> None:
    assert positive_probabilities([[-math.inf, 1.0], [1.0, -math.inf]], [0, 1]).tolist() == [1, 0]
    assert classify_binary_sentiment(torch.empty(0, 5), [0, 1], calibrate=True) == []


@pytest.mark.parametrize(
    ("logits", "tokens", "message"),
    [
        ([[0.0, 1.0], [math.nan, 1.0]], [0, 1], "logits of row 1 are nan, 1: no probability"),
        ([[-math.inf, -math.inf]], [0, 1], "logits of row 0 are -inf, -inf"),
        ([[math.inf, math.inf]], [1, 0], "logits of row 0 are inf, inf"),
        ([0.0, 1.0], [0, 1], r"logits of shape \(2,\), expected \(N, V\)"),
        ([[0.0, 1.0]], [0, 2], r"tokens_of_interest = \[0, 2\], expected .* from 0 to 1"),
        ([[0.0, 1.0]], [0, -1], r"tokens_of_interest = \[0, -1\]"),
        ([[0.0, 1.0]], [1, 1], "different"),
        ([[0.0, 1.0]], [1], r"\[negative, positive\]"),
    ],
)
def test_what_has_no_answer_is_refused(
    logits: list[list[float]], tokens: list[int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        classify_binary_sentiment(logits, tokens)


def test_numbers_of_other_words_do_not_matter() -> None:
    assert classify_binary_sentiment([[0.0, math.nan, 1.0]], [0, 2]) == [1]
