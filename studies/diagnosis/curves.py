"""Learning curves as arrays, whatever they came from. No torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Curve:
    """Learning curves of one run, by step; all arrays are (points,), NaN where not measured."""

    step: FloatArray
    tokens: FloatArray
    flops: FloatArray
    """Training FLOPs so far, in the run's convention."""
    train_loss_nats: FloatArray
    """Mean since the point before."""
    val_loss_nats: FloatArray
    lr: FloatArray
    grad_norm: FloatArray
    """Norm of the last step's gradient, before clipping."""

    @classmethod
    def of(cls, points: Iterable[Any]) -> Curve:
        """Points of the trainer or the database; None becomes NaN."""
        return cls.of_rows([tuple(getattr(p, name) for name in COLUMNS) for p in points])

    @classmethod
    def of_rows(cls, rows: list[tuple[float | None, ...]]) -> Curve:
        """Rows of values in the order of `COLUMNS`."""
        table = np.array(rows, dtype=np.float64).reshape(len(rows), len(COLUMNS))
        table[~np.isfinite(table)] = np.nan
        return cls(*(np.ascontiguousarray(column) for column in table.T))

    @classmethod
    def each_of(cls, by_run: Mapping[int, list[tuple[float | None, ...]]]) -> dict[int, Curve]:
        """Rows of several runs as the database has them, by run id."""
        return {run_id: cls.of_rows(rows) for run_id, rows in by_run.items()}

    def __len__(self) -> int:
        return self.step.size

    def thinned(self, points: int) -> Curve:
        """At most `points` points: neighbours become one, with their means.

        A joint point has the last step and count of its neighbours, the last rate and the last
        validation loss that there is; the training loss is the mean over them.
        """
        if len(self) <= points:
            return self
        groups = np.array_split(np.arange(len(self)), points)
        last = np.array([group[-1] for group in groups])
        return Curve(
            step=self.step[last],
            tokens=self.tokens[last],
            flops=self.flops[last],
            train_loss_nats=np.array([_mean(self.train_loss_nats[g]) for g in groups]),
            val_loss_nats=np.array([_last(self.val_loss_nats[g]) for g in groups]),
            lr=np.array([_last(self.lr[g]) for g in groups]),
            grad_norm=np.array([_mean(self.grad_norm[g]) for g in groups]),
        )


COLUMNS = tuple(field.name for field in dataclasses.fields(Curve))


def _mean(values: FloatArray) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else float("nan")


def _last(values: FloatArray) -> float:
    known = values[np.isfinite(values)]
    return float(known[-1]) if known.size else float("nan")
