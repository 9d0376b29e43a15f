"""How good a classification into two classes is: accuracy with its interval, confusion, AUC.

No torch.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

CONFIDENCE = 0.95
RANDOM_ACCURACY = 0.5
"""Expected accuracy of a coin, whatever the shares of the classes."""


@dataclass(frozen=True)
class Decision:
    """How often one boundary is right."""

    boundary: float
    """p(positive) above it is positive."""
    n_correct: int
    accuracy: float
    ci95_low: float
    ci95_high: float
    """Wilson interval of the accuracy: the texts are a sample of all texts."""
    true_negative: int
    false_positive: int
    """Negative texts that were called positive."""
    false_negative: int
    true_positive: int
    against_majority: Literal["above", "not distinguishable", "below"]
    """Where the interval lies, seen from the accuracy of always naming the larger class."""


@dataclass(frozen=True)
class Ranking:
    """Whether positive texts rank above negative ones, whatever the boundary."""

    auc: float | None
    """P(a positive text has the higher p(positive)), ties half; None: one class only."""
    auc_ci95_low: float | None
    auc_ci95_high: float | None
    """Interval after Hanley and McNeil (1982), within [0, 1]."""


def majority_accuracy(labels: Sequence[int]) -> float:
    """Accuracy of naming the larger class always."""
    positive = sum(labels)
    return max(positive, len(labels) - positive) / len(labels)


def measure(labels: Sequence[int], predictions: Sequence[int], boundary: float) -> Decision:
    """Accuracy and confusion of predictions (N,) beside labels (N,): 0 = negative, 1 = positive.

    Raises:
        ValueError: N is 0, or the lengths differ.
    """
    from scipy.stats import binomtest

    counts = Counter(zip(labels, predictions, strict=True))
    correct = counts[0, 0] + counts[1, 1]
    interval = binomtest(correct, len(labels)).proportion_ci(CONFIDENCE, method="wilson")
    low, high = float(interval.low), float(interval.high)
    majority = majority_accuracy(labels)
    return Decision(
        boundary=boundary, n_correct=correct, accuracy=correct / len(labels),
        ci95_low=low, ci95_high=high,
        true_negative=counts[0, 0], false_positive=counts[0, 1],
        false_negative=counts[1, 0], true_positive=counts[1, 1],
        against_majority="above" if low > majority
        else "below" if high < majority else "not distinguishable",
    )  # fmt: skip


def rank(labels: Sequence[int], probabilities: Sequence[float]) -> Ranking:
    """Area under the ROC curve, from the ranks of p(positive) (N,); labels as in `measure`."""
    from scipy.stats import norm, rankdata

    positive = np.asarray(labels) == 1
    n_positive, n_negative = int(positive.sum()), int((~positive).sum())
    if not n_positive or not n_negative:
        return Ranking(None, None, None)
    ranks = rankdata(probabilities)
    below = float(ranks[positive].sum()) - n_positive * (n_positive + 1) / 2
    auc = below / (n_positive * n_negative)
    # Q1: two positives above one negative; Q2: one positive above two negatives.
    q1, q2 = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    variance = (
        auc * (1 - auc) + (n_positive - 1) * (q1 - auc**2) + (n_negative - 1) * (q2 - auc**2)
    ) / (n_positive * n_negative)
    reach = float(norm.ppf(0.5 + CONFIDENCE / 2)) * math.sqrt(max(variance, 0.0))
    return Ranking(auc, max(auc - reach, 0.0), min(auc + reach, 1.0))
