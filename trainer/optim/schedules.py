"""Learning-rate schedules: pure functions of the step. No torch."""

from __future__ import annotations

import math
from collections.abc import Callable


def cosine_lr_schedule(
    num_warmup_steps: int, num_training_steps: int, min_lr: float, max_lr: float
) -> Callable[[int], float]:
    """Linear warm-up, then half a cosine (Loshchilov & Hutter 2017, eq. 5, without restarts).

    get_lr(t) of step t, from 0; with a = num_warmup_steps and b = num_training_steps: from 0 up to
    max_lr on [0, a), from max_lr down to min_lr on [a, b), min_lr from b on. a = 0: no warm-up.

    Raises:
        ValueError: a number of steps is negative.
    """
    _require_steps(num_warmup_steps, num_training_steps)

    def get_lr(t: int) -> float:
        if t < num_warmup_steps:
            return float(max_lr * t / num_warmup_steps)
        if t < num_training_steps:
            progress = (t - num_warmup_steps) / (num_training_steps - num_warmup_steps)
            return float(min_lr + (max_lr - min_lr) * 0.5 * (1.0 + math.cos(math.pi * progress)))
        return float(min_lr)

    return get_lr


def trapezoid_lr_schedule(
    num_warmup_steps: int,
    num_training_steps: int,
    num_cooldown_steps: int,
    min_lr: float,
    max_lr: float,
) -> Callable[[int], float]:
    """Linear warm-up, constant, linear cooldown (Zhai et al. 2022; Hägele et al. 2024).

    With a = num_warmup_steps, b = num_training_steps and c = num_cooldown_steps, at most b - a:
    from 0 up to max_lr on [0, a), max_lr on [a, b - c), from max_lr down to min_lr on [b - c, b),
    min_lr from b on. c = b - a leaves nothing constant: linear decay. Else as `cosine_lr_schedule`.
    """
    _require_steps(num_warmup_steps, num_training_steps, num_cooldown_steps)
    cooldown = min(num_cooldown_steps, max(0, num_training_steps - num_warmup_steps))

    def get_lr(t: int) -> float:
        if t < num_warmup_steps:
            return float(max_lr * t / num_warmup_steps)
        left = num_training_steps - t
        if left <= 0:
            return float(min_lr)
        return float(min_lr + (max_lr - min_lr) * min(1.0, left / cooldown if cooldown else 1.0))

    return get_lr


def _require_steps(*counts: int) -> None:
    if min(counts) < 0:
        raise ValueError(f"{min(counts)} steps: numbers of steps must not be negative")


def fractions(num_steps: int, parts: int) -> frozenset[int]:
    """The steps round(k · num_steps / parts), k = 1 … parts; 0 is no step."""
    steps = (round(k * num_steps / parts) for k in range(1, parts + 1))
    return frozenset(step for step in steps if step > 0)
