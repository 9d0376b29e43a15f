"""Frames of runs beside a scaling fit: their budgets, and their losses as if well tuned."""

from __future__ import annotations

import numpy as np
import pandas as pd

from studies.diagnosis.curves import FloatArray
from studies.scaling.fit_data import FLOPS_PER_PARAM_TOKEN, distinct_budgets
from studies.scaling.result import ScalingFit


def as_if_tuned(points: pd.DataFrame, fit: ScalingFit) -> pd.DataFrame:
    """Runs with `flops`, their `budget`, and `loss` less what rate and batch cost."""
    runs = points.copy()
    size, tokens = (runs[name].to_numpy(dtype=float) for name in ("n_params", "tokens"))
    runs["flops"] = FLOPS_PER_PARAM_TOKEN * size * tokens
    cost = losses_as_run(runs, fit) - fit.losses(size, tokens)
    runs["loss"] = runs["val_loss_nats"].to_numpy(dtype=float) - cost
    budgets = np.array(distinct_budgets(runs["flops"].to_numpy()))
    nearest = np.abs(np.log(runs["flops"].to_numpy()[:, None] / budgets)).argmin(axis=1)
    runs["budget"] = budgets[nearest]
    return runs


def losses_as_run(runs: pd.DataFrame, fit: ScalingFit) -> FloatArray:
    """Losses by the fit with the rates and batches of the runs."""

    def column(name: str) -> FloatArray | None:
        return runs[name].to_numpy(dtype=float) if name in runs else None

    return fit.losses(
        runs["n_params"].to_numpy(dtype=float), runs["tokens"].to_numpy(dtype=float),
        max_lr=column("max_lr"), batch_tokens=column("batch_tokens"),
    )  # fmt: skip


def at_budget(runs: pd.DataFrame, flops: float) -> pd.DataFrame:
    """The runs of one budget."""
    return runs[runs["budget"] == flops]


def carried_rates(fit: ScalingFit, rows: pd.DataFrame, size: float) -> FloatArray:
    """Peak rates of runs, carried by the fit to another size and the best batch: (runs,)."""
    batches = rows["batch_tokens"] if "batch_tokens" in rows else [None] * len(rows)
    factors = [
        fit.tuned_lr(size, tokens)
        / fit.tuned_lr(n_params, tokens, batch if batch and np.isfinite(batch) else None)
        for n_params, tokens, batch in zip(rows["n_params"], rows["tokens"], batches, strict=True)
    ]
    return rows["max_lr"].to_numpy(dtype=float) * np.array(factors)
