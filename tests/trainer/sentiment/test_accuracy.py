"""Accuracy, intervals and AUC, against formulas and counts written out."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.sentiment.accuracy import majority_accuracy, measure, rank

PAIRS = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=60)
SCORED = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 4)), min_size=1, max_size=25)


def wilson(k: int, n: int) -> tuple[float, float]:
    """Wilson (1927), 95 %."""
    z, p = 1.959963984540054, k / n
    centre, reach = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return (centre - reach) / (1 + z * z / n), (centre + reach) / (1 + z * z / n)


@settings(max_examples=30)
@given(PAIRS)
def test_counts_add_up_and_the_interval_is_wilsons(pairs: list[tuple[int, int]]) -> None:
    labels, predictions = [p[0] for p in pairs], [p[1] for p in pairs]
    found = measure(labels, predictions, 0.5)
    assert found.true_negative + found.false_positive == labels.count(0)
    assert found.false_negative + found.true_positive == labels.count(1)
    assert found.false_positive + found.true_positive == predictions.count(1)
    assert found.n_correct == found.true_negative + found.true_positive
    assert found.accuracy == sum(a == b for a, b in pairs) / len(pairs)
    low, high = wilson(found.n_correct, len(pairs))
    assert (found.ci95_low, found.ci95_high) == pytest.approx((low, high), abs=1e-12)


def test_the_confusion_is_not_mirrored() -> None:
    found = measure([0, 0, 0, 1, 1, 1, 1], [0, 1, 1, 0, 0, 0, 1], 0.7)
    assert (found.true_negative, found.false_positive) == (1, 2)
    assert (found.false_negative, found.true_positive) == (3, 1)
    assert found.boundary == 0.7


@pytest.mark.parametrize(
    ("n_right", "against"), [(90, "above"), (52, "not distinguishable"), (30, "below")]
)
def test_the_majority_is_beaten_where_the_whole_interval_lies_above(
    n_right: int, against: str
) -> None:
    labels = [0] * 50 + [1] * 50
    predictions = [label if i < n_right else 1 - label for i, label in enumerate(labels)]
    assert measure(labels, predictions, 0.5).against_majority == against


def test_always_naming_the_larger_class_does_not_beat_itself() -> None:
    labels = [1] * 641 + [0] * 359
    assert majority_accuracy(labels) == 0.641
    assert majority_accuracy([1 - label for label in labels]) == 0.641
    found = measure(labels, [1] * 1000, 0.5)
    assert found.accuracy == 0.641
    assert found.against_majority == "not distinguishable"


@given(SCORED)
def test_the_area_is_the_share_of_pairs_in_order(scored: list[tuple[int, int]]) -> None:
    labels, scores = [s[0] for s in scored], [s[1] / 4 for s in scored]
    positive = [p for label, p in zip(labels, scores, strict=True) if label]
    negative = [p for label, p in zip(labels, scores, strict=True) if not label]
    found = rank(labels, scores)
    if not positive or not negative:
        assert found.auc is found.auc_ci95_low is found.auc_ci95_high is None
        return
    pairs = list(itertools.product(positive, negative))
    area = sum((a > b) + (a == b) / 2 for a, b in pairs) / len(pairs)
    assert found.auc == pytest.approx(area, abs=1e-12)
    assert found.auc_ci95_low is not None
    assert found.auc_ci95_high is not None
    assert 0 <= found.auc_ci95_low <= area + 1e-12
    assert area - 1e-12 <= found.auc_ci95_high <= 1


def test_the_areas_interval_is_hanley_and_mcneils() -> None:
    # Their formula by hand: A = 8/9, 3 positive and 3 negative texts.
    found = rank([0, 0, 1, 0, 1, 1], [0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    a = 8 / 9
    q1, q2 = a / (2 - a), 2 * a * a / (1 + a)
    error = math.sqrt((a * (1 - a) + 2 * (q1 - a * a) + 2 * (q2 - a * a)) / 9)
    assert found.auc == pytest.approx(a)
    assert found.auc_ci95_low == pytest.approx(a - 1.959963984540054 * error)
    assert found.auc_ci95_high == 1.0


def test_nothing_cannot_be_measured() -> None:
    with pytest.raises(ValueError, match="n"):
        measure([], [], 0.5)
    with pytest.raises(ValueError, match="zip"):
        measure([0, 1], [0], 0.5)
