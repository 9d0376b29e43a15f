"""How a trial's settings follow a larger budget at the same shape: pure functions."""

from __future__ import annotations

import math
from dataclasses import dataclass

from budgetsweep.config import apply_overrides, parse
from budgetsweep.constraint import Limits, affordable_steps, memory_needed
from budgetsweep.errors import ConfigError
from trainer.config import RunConfig

BATCH_EXPONENT = 0.45
LR_EXPONENT = -0.32
LONGEST_WARMUP = 0.1
"""Share of a promotion's steps that a warm-up grows to (*assumption*)."""


@dataclass(frozen=True)
class Rescaling:
    """Factors for a run of `tokens_ratio` times the tokens at the same shape."""

    tokens_ratio: float
    batch_factor: int
    lr_factor: float


def rescale(tokens_ratio: float) -> Rescaling:
    """How batch and learning rate follow the training tokens at a fixed shape.

    Batch: B ∝ D^0.45, the middle of published exponents 0.38 to 0.57 (DeepSeek LLM 2024; StepLaw,
    Li et al. 2025), rounded to a whole factor. Learning rate: ∝ D^-0.32 at a fixed batch
    (Bjorck et al. 2024), times sqrt of the batch factor (Adam's square-root rule, Malladi et al.
    2022). Weight decay, the ratio of final to peak learning rate and beta2 stay (a beta2 that keeps
    its half-life in tokens was 0.05 to 0.1 nats worse, one run each: docs/experiments.md); the
    warm-up: `rescaled_warmup`. A ratio below 1 changes nothing.
    """
    ratio = max(1.0, tokens_ratio)
    factor = max(1, round(ratio**BATCH_EXPONENT))
    return Rescaling(
        tokens_ratio=tokens_ratio,
        batch_factor=factor,
        lr_factor=ratio**LR_EXPONENT * math.sqrt(factor),
    )


def rescaled_warmup(kept: int, n_params: int, tokens_per_step: int, steps: int) -> int:
    """Steps of warm-up of a long run; `n_params` are the active parameters.

    As many tokens as the model has parameters (Porian et al. 2024), at most a tenth of the run, and
    never fewer steps than the short run had (`kept`): a few of its few steps are none to a long
    one.
    """
    return max(kept, min(round(n_params / tokens_per_step), int(LONGEST_WARMUP * steps)))


def promoted_config(
    trial: RunConfig, budget_flops: int, overrides: tuple[str, ...], limits: Limits
) -> tuple[RunConfig, Rescaling]:
    """The configuration of the long run, steps still to be filled.

    The micro-batch grows as far as the device's memory allows; the rest of the larger batch is
    gradient accumulation.

    Raises:
        ConfigError: an override that changes the model's shape, or is not valid.
    """
    tokens = affordable_steps(trial, budget_flops, limits.convention) * trial.tokens_per_step
    rescaling = rescale(tokens / trial.total_tokens)
    accumulate = _accumulation(trial, rescaling.batch_factor, limits)
    data = trial.to_dict()
    tokens_per_step = trial.tokens_per_step * rescaling.batch_factor
    warmup = 0
    if trial.warmup_steps or trial.warmup_fraction:  # a share of a few steps may be none
        steps = tokens // tokens_per_step
        kept, n_params = trial.warmup_steps, trial.n_active_params
        warmup = rescaled_warmup(kept, n_params, tokens_per_step, steps)
    data.pop("warmup_fraction", None)
    data.update(
        num_training_steps="fill",
        num_warmup_steps=warmup,
        budget_flops=budget_flops,
        convention=limits.convention,
        batch_size=trial.batch_size * rescaling.batch_factor // accumulate,
        grad_accumulation_steps=trial.grad_accumulation_steps * accumulate,
        max_lr=float(f"{trial.max_lr * rescaling.lr_factor:.4g}"),
        min_lr=float(f"{trial.final_lr * rescaling.lr_factor:.4g}"),
    )
    data["data"].pop("train_tokens", None)
    for override in overrides:
        # A share given by hand replaces the number that the rule would have kept.
        for share, number in (("min_lr_ratio", "min_lr"), ("warmup_fraction", "num_warmup_steps")):
            if override.startswith(f"{share}="):
                data.pop(number, None)
    config = parse(RunConfig, apply_overrides(data, overrides), "promotion")
    if config.model.model_copy(update={"p_dropout": trial.model.p_dropout}) != trial.model:
        raise ConfigError("--set: a promotion keeps the model's shape; only p_dropout may change")
    return config, rescaling


def _accumulation(trial: RunConfig, factor: int, limits: Limits) -> int:
    """The smallest divisor of `factor` whose micro-batch fits the device's memory."""
    if limits.device is None:
        return 1
    for pieces in range(1, factor + 1):
        if factor % pieces:
            continue
        config = trial.with_changes(batch_size=trial.batch_size * factor // pieces)
        memory = memory_needed(config, limits.device)
        if memory <= limits.device.memory_bytes:
            return pieces
    return factor
