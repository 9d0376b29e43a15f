"""Finished runs as data points of the scaling fit: size, tokens, loss, and how they were tuned."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import ArrayLike, NDArray

from studies.scaling.law import FloatArray

FLOPS_PER_PARAM_TOKEN = 6.0
"""C = 6 · N · D (Kaplan et al. 2020), the convention of published tables. A fit needs FLOPs only to
count budgets and to say how far it extrapolates."""
SAME_BUDGET = 1.25
"""Budgets closer than this factor are one: runs fill a budget in whole steps."""


@dataclass(frozen=True)
class FitPoint:
    """A data point of the fit: the loss at the end of one finished, decayed schedule.

    All numbers are finite and above 0, a standard error 0 or above.
    """

    n_params: float
    """Parameters, counted alike in all points of a fit."""
    tokens: float
    """Training tokens."""
    loss_nats: float
    """Validation loss per token."""
    max_lr: float | None = None
    """Peak learning rate; None: not known, taken as well tuned."""
    batch_tokens: float | None = None
    """Tokens per step; None: not known, taken as well tuned."""
    stderr_nats: float = 0.0
    """Standard error of the measured loss."""
    group: str = ""
    """Data set or study; a fit is of one group."""

    @property
    def flops(self) -> float:
        """Training FLOPs as 6 · N · D."""
        return FLOPS_PER_PARAM_TOKEN * self.n_params * self.tokens


@dataclass(frozen=True)
class FitData:
    """Data points as natural logarithms; all arrays are (points,), NaN where not known."""

    n_params: FloatArray
    tokens: FloatArray
    loss: FloatArray
    max_lr: FloatArray
    batch_tokens: FloatArray
    stderr: FloatArray
    """Standard error of the log loss."""

    @classmethod
    def of(cls, points: Sequence[FitPoint]) -> FitData:
        """Logarithms of the points."""

        def column(name: str) -> FloatArray:
            values = [getattr(point, name) for point in points]
            return np.log(np.array([np.nan if v is None else v for v in values], dtype=float))

        loss = column("loss_nats")
        stderr = np.array([point.stderr_nats for point in points], dtype=float) / np.exp(loss)
        return cls(
            column("n_params"), column("tokens"), loss, column("max_lr"), column("batch_tokens"),
            stderr,
        )  # fmt: skip

    @classmethod
    def to_predict(
        cls,
        n_params: ArrayLike,
        tokens: ArrayLike,
        max_lr: ArrayLike | None = None,
        batch_tokens: ArrayLike | None = None,
    ) -> FitData:
        """Runs whose loss is not known; a setting that is not given is taken as well tuned."""
        n, d = (
            np.atleast_1d(np.log(np.asarray(values, dtype=float)))
            for values in np.broadcast_arrays(n_params, tokens)
        )
        unknown = np.full(n.shape, np.nan)
        lr, batch = (
            unknown if values is None else np.log(np.broadcast_to(values, n.shape))
            for values in (max_lr, batch_tokens)
        )
        return cls(n, d, unknown, lr, batch, np.zeros(n.shape))

    def take(self, chosen: NDArray[np.intp]) -> FitData:
        """The points at some indices."""
        return FitData(*(getattr(self, field.name)[chosen] for field in fields(self)))


def distinct_budgets(flops: ArrayLike) -> list[float]:
    """Distinct FLOPs, ascending; each the geometric mean of those within `SAME_BUDGET`."""
    logs = np.sort(np.log(np.asarray(flops, dtype=float)))
    if not len(logs):
        return []
    parts = np.split(logs, np.flatnonzero(np.diff(logs) > math.log(SAME_BUDGET)) + 1)
    return [float(np.exp(part.mean())) for part in parts]


def budgets_of(points: Iterable[FitPoint]) -> list[float]:
    """Distinct budgets in FLOPs (6 · N · D), ascending."""
    return distinct_budgets([point.flops for point in points])


def sizes_of(points: Iterable[FitPoint]) -> list[int]:
    """Distinct numbers of parameters, ascending."""
    return sorted({round(point.n_params) for point in points})
