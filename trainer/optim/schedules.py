"""Learning-rate schedules: pure functions of the step. No torch."""

from __future__ import annotations

import math
from collections.abc import Callable

from trainer.config import COOLDOWN_FRACTION, RunConfig


def cosine_lr_schedule(
    num_warmup_steps: int, num_training_steps: int, min_lr: float, max_lr: float
) -> Callable[[int], float]:
    """Linear warm-up, then half a cosine (Loshchilov & Hutter 2017, eq. 5, without restarts).

    With a = num_warmup_steps and b = num_training_steps: from 0 up to max_lr on [0, a), from
    max_lr down to min_lr on [a, b), min_lr from b on. a = 0 means no warm-up.

    Args:
        num_warmup_steps: a.
        num_training_steps: b.
        min_lr: learning rate at the end.
        max_lr: learning rate at the peak.

    Returns:
        get_lr(t): the learning rate of step t, counted from 0.

    Raises:
        ValueError: a number of steps is negative.
    """
    if num_warmup_steps < 0 or num_training_steps < 0:
        raise ValueError(
            f"num_warmup_steps = {num_warmup_steps} and num_training_steps = "
            f"{num_training_steps} must not be negative"
        )

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

    With a = num_warmup_steps, b = num_training_steps and c = num_cooldown_steps: from 0 up to
    max_lr on [0, a), max_lr on [a, b - c), from max_lr down to min_lr on [b - c, b), min_lr from b
    on. c = b - a leaves nothing constant: linear decay.

    Args:
        num_warmup_steps: a.
        num_training_steps: b.
        num_cooldown_steps: c; cut to b - a where it is more.
        min_lr: learning rate at the end.
        max_lr: learning rate at the peak.

    Returns:
        get_lr(t): the learning rate of step t, counted from 0.

    Raises:
        ValueError: a number of steps is negative.
    """
    if min(num_warmup_steps, num_training_steps, num_cooldown_steps) < 0:
        raise ValueError(
            f"num_warmup_steps = {num_warmup_steps}, num_training_steps = {num_training_steps} and "
            f"num_cooldown_steps = {num_cooldown_steps} must not be negative"
        )
    cooldown = min(num_cooldown_steps, max(0, num_training_steps - num_warmup_steps))

    def get_lr(t: int) -> float:
        if t < num_warmup_steps:
            return float(max_lr * t / num_warmup_steps)
        left = num_training_steps - t
        if left <= 0:
            return float(min_lr)
        return float(min_lr + (max_lr - min_lr) * min(1.0, left / cooldown if cooldown else 1.0))

    return get_lr


def lr_schedule(config: RunConfig) -> Callable[[int], float]:
    """The schedule of a filled configuration: get_lr(t), t from 0."""
    warmup, steps = config.warmup_steps, config.steps
    if config.schedule == "cosine":
        return cosine_lr_schedule(warmup, steps, config.final_lr, config.max_lr)
    return trapezoid_lr_schedule(
        warmup, steps, _cooldown_steps(config), config.final_lr, config.max_lr
    )


def _cooldown_steps(config: RunConfig) -> int:
    """Steps of the final line of a filled configuration; the warm-up may cut into them."""
    if config.schedule != "wsd":
        return config.steps
    return round((config.cooldown_fraction or COOLDOWN_FRACTION) * config.steps)


def fractions(num_steps: int, parts: int) -> frozenset[int]:
    """The steps round(k · num_steps / parts), k = 1 … parts; 0 is no step."""
    steps = (round(k * num_steps / parts) for k in range(1, parts + 1))
    return frozenset(step for step in steps if step > 0)
