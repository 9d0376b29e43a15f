"""Curves for tests: made from a formula, with noise of a fixed seed."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from studies.diagnosis.curves import COLUMNS, Curve

STEPS = np.arange(10, 1010, 10, dtype=np.float64)


def sound_loss(steps: NDArray[np.float64] = STEPS) -> NDArray[np.float64]:
    """From ln 257 down by a power law, the first half within a few per cent of the steps."""
    return 1.5 + 4.0 / (1.0 + steps / 20.0) ** 0.6


def curve(noise: float = 0.03, seed: int = 0, **columns: Any) -> Curve:
    """A sound run of 1,000 steps; keywords replace its columns, None leaves one out."""
    rng = np.random.default_rng(seed)
    rising, rest = np.minimum(STEPS / 50, 1.0), np.clip((STEPS - 50) / 950, 0, 1)
    values: dict[str, Any] = {
        "step": STEPS,
        "tokens": STEPS * 512,
        "flops": STEPS * 1e6,
        "train_loss_nats": sound_loss() + noise * rng.normal(size=STEPS.size),
        "val_loss_nats": np.where(STEPS % 100 == 0, sound_loss() + 0.05, np.nan),
        "lr": 3e-3 * rising * (0.1 + 0.9 * 0.5 * (1 + np.cos(np.pi * rest))),
        "grad_norm": 0.6 * np.exp(0.15 * rng.normal(size=STEPS.size)),
    }
    values.update(columns)
    nothing = np.full(STEPS.size, np.nan)
    arrays = [nothing if values[name] is None else values[name] for name in COLUMNS]
    return Curve(*(np.asarray(array, dtype=np.float64) for array in arrays))
