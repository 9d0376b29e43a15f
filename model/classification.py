"""Two classes by a language model's opinion of the next token (zero-shot classification)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

EVEN_ODDS = 0.5
"""The boundary without calibration."""


def positive_probabilities(
    logits: Tensor | Sequence[Sequence[float]], tokens_of_interest: Tensor | Sequence[int]
) -> Tensor:
    """p(positive) of each row, (N,) float64 on the CPU: the softmax over two tokens only.

    Args:
        logits: (N, V) of the next token.
        tokens_of_interest: ids of the negative and the positive word, in this order.

    Raises:
        ValueError: not such logits or ids, or a row of which the softmax is not a number.
    """
    table = torch.as_tensor(logits).detach().cpu()
    if table.ndim != 2:
        raise ValueError(f"logits of shape {tuple(table.shape)}, expected (N, V)")
    negative, positive = _two_ids(tokens_of_interest, table.shape[1])
    probabilities = table[:, [negative, positive]].double().softmax(dim=1)[:, 1]
    bad = probabilities.isnan().nonzero()
    if len(bad):
        row = int(bad[0])
        two = ", ".join(f"{float(table[row, i]):g}" for i in (negative, positive))
        raise ValueError(f"logits of row {row} are {two}: no probability can be made of them")
    return probabilities


def _two_ids(tokens_of_interest: Tensor | Sequence[int], n_vocab: int) -> tuple[int, int]:
    ids = torch.as_tensor(tokens_of_interest).flatten().tolist()
    if len(ids) != 2 or ids[0] == ids[1] or not all(0 <= i < n_vocab for i in ids):
        raise ValueError(
            f"tokens_of_interest = {ids}, expected the ids [negative, positive], different, from 0 "
            f"to {n_vocab - 1}"
        )
    return int(ids[0]), int(ids[1])


def decision_boundary(probabilities: Tensor, calibrate: bool) -> float:
    """What p(positive) has to exceed: 0.5, or the median of p(positive) (N,) when calibrating.

    No label is used. The median of no numbers is 0.5.
    """
    if not calibrate or not len(probabilities):
        return EVEN_ODDS
    return float(np.median(probabilities.numpy()))


def decide(probabilities: Tensor, boundary: float) -> list[int]:
    """1 (positive) where p(positive) lies above the boundary, else 0; on the boundary it is 0."""
    return (probabilities > boundary).int().tolist()


def classify_binary_sentiment(
    logits: Tensor | Sequence[Sequence[float]],
    tokens_of_interest: Tensor | Sequence[int],
    calibrate: bool = False,
) -> list[int]:
    """The class of each row: 1 = positive, 0 = negative.

    Ties are negative: p(positive) equal to the boundary, 0.5 or the median, gives 0. So with
    calibration at most half of the rows are positive, and a single row is negative. Calibration
    takes away how likely the words are before anything is read (Zhao et al. 2021 estimate the same
    from an empty text). Arguments and errors else as in `positive_probabilities`.
    """
    probabilities = positive_probabilities(logits, tokens_of_interest)
    return decide(probabilities, decision_boundary(probabilities, calibrate))
