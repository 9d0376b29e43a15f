"""Finished runs as the scaling fit sees them: size, tokens, loss, and how they were tuned."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import ArrayLike, NDArray

from studies.diagnosis.curves import FloatArray

FLOPS_PER_PARAM_TOKEN = 6.0
"""C = 6 · N · D (Kaplan et al. 2020), the convention of published tables. A fit needs FLOPs only to
count budgets and to say how far it extrapolates."""
SAME_BUDGET = 1.25
"""Budgets closer than this factor are one: runs fill a budget in whole steps."""


@dataclass(frozen=True)
class Observation:
    """The loss at the end of one finished, decayed schedule."""

    n_params: float
    """Parameters, counted alike in all observations of a fit."""
    tokens: float
    """Training tokens."""
    loss_nats: float
    """Validation loss a token."""
    max_lr: float | None = None
    """Peak learning rate; None: not known, taken as well tuned."""
    batch_tokens: float | None = None
    """Tokens a step; None: not known, taken as well tuned."""
    stderr_nats: float = 0.0
    """Standard error of the measured loss."""
    group: str = ""
    """Data set or study; a fit is of one group."""

    def __post_init__(self) -> None:
        problem = problem_of(self)
        if problem is not None:
            raise ValueError(f"observation: {problem}")

    @property
    def flops(self) -> float:
        """Training FLOPs as 6 · N · D."""
        return FLOPS_PER_PARAM_TOKEN * self.n_params * self.tokens


def problem_of(observation: Observation) -> str | None:
    """What makes an observation unusable, in words; None: nothing."""
    for name in ("n_params", "tokens", "loss_nats", "max_lr", "batch_tokens"):
        value = getattr(observation, name)
        if value is None and name in ("max_lr", "batch_tokens"):
            continue
        if not (math.isfinite(value) and value > 0):
            return f"{name} must be a finite number above 0, not {value}"
    error = observation.stderr_nats
    if not (math.isfinite(error) and error >= 0):
        return f"stderr_nats must be a finite number, 0 or above, not {error}"
    return None


@dataclass(frozen=True)
class Points:
    """Observations as natural logarithms; all arrays are (points,), NaN where not known."""

    n_params: FloatArray
    tokens: FloatArray
    loss: FloatArray
    max_lr: FloatArray
    batch_tokens: FloatArray
    stderr: FloatArray
    """Standard error of the log loss."""

    @classmethod
    def of(cls, observations: Sequence[Observation]) -> Points:
        """Logarithms of the observations."""

        def column(name: str) -> FloatArray:
            values = [getattr(one, name) for one in observations]
            return np.log(np.array([np.nan if v is None else v for v in values], dtype=float))

        loss = column("loss_nats")
        stderr = np.array([one.stderr_nats for one in observations], dtype=float) / np.exp(loss)
        return cls(
            column("n_params"), column("tokens"), loss, column("max_lr"), column("batch_tokens"),
            stderr,
        )  # fmt: skip

    def take(self, chosen: NDArray[np.intp]) -> Points:
        """The points at some indices."""
        return Points(*(getattr(self, field.name)[chosen] for field in fields(self)))


def distinct_budgets(flops: ArrayLike) -> list[float]:
    """Distinct FLOPs, ascending; each the geometric mean of those within `SAME_BUDGET`."""
    logs = np.sort(np.log(np.asarray(flops, dtype=float)))
    if not len(logs):
        return []
    parts = np.split(logs, np.flatnonzero(np.diff(logs) > math.log(SAME_BUDGET)) + 1)
    return [float(np.exp(part.mean())) for part in parts]


def budgets_of(observations: Iterable[Observation]) -> list[float]:
    """Distinct budgets of runs in FLOPs (6 · N · D), ascending."""
    return distinct_budgets([one.flops for one in observations])


def shapes_of(observations: Iterable[Observation]) -> list[float]:
    """Distinct numbers of parameters, ascending."""
    return sorted({round(one.n_params) for one in observations})
