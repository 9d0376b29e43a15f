"""What a budget buys: the charge of a configuration, the steps it affords, admit or reject.

Everything here is whole-number arithmetic on the configuration alone; nothing is trained, and
torch is never loaded. The charge of one optimiser step is

    flops_per_token * batch_size * seq_len * grad_accumulation_steps

in the budget's convention (`model.flops`), of an encoder-decoder that of a pair by the pairs, and
Muon's own products where it is the optimiser; so a run of n steps costs exactly n charges.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from budgetsweep.config import parse
from budgetsweep.errors import ConfigError, Reason
from model.flops import Convention
from trainer.config import RunConfig
from trainer.data.facts import DataFacts
from trainer.events import DeviceInfo
from trainer.memory import estimate_memory_bytes

MIN_VALIDATION_WINDOWS = 8
"""Windows of seq_len tokens that a validation pass must have: fewer give no standard error worth
its name (*assumption*)."""


@dataclass(frozen=True)
class Limits:
    """What a configuration must fit into; None: not limited or not known."""

    budget_flops: int
    convention: Convention = Convention.NANOGPT
    device: DeviceInfo | None = None
    data: DataFacts | None = None


@dataclass(frozen=True)
class Admitted:
    """A configuration that fits, its steps and learning rates written out."""

    config: RunConfig
    charge_flops: int
    """Whole cost in the budget's convention; at most the budget."""
    memory_bytes: int | None
    """Estimated peak memory, where the device is known."""
    epochs: float | None
    """Passes over the training text, where its size is known."""


@dataclass(frozen=True)
class Rejected:
    """A configuration that does not fit, why, and by how much."""

    reason: Reason
    detail: str
    """One line with the figures."""
    excess: float | None = None
    """How many times the limit is needed (1.5: half as much again), where there is a limit."""
    n_params: int | None = None
    tokens: int | None = None
    charge_flops: int | None = None


def affordable_steps(config: RunConfig, budget_flops: int, convention: Convention) -> int:
    """The most optimiser steps that `budget_flops` pays for; 0 when it does not pay one."""
    return budget_flops // config.flops_per_step(convention)


def planned_flops(config: RunConfig) -> dict[Convention, int]:
    """Training FLOPs of a filled configuration in every convention."""
    return {name: config.flops_per_step(name) * config.steps for name in Convention}


def fill(config: RunConfig) -> RunConfig:
    """Write out what a configuration leaves to the budget.

    Given `num_training_steps: fill` and budget_flops, solve for the most steps; then write the
    warm-up in steps and the final learning rate as numbers. A filled configuration is returned
    with equal values.

    Raises:
        ConfigError: `fill` without a budget, or a budget that does not pay one step.
    """
    steps = config.num_training_steps
    if steps == "fill":
        if config.budget_flops is None:
            raise ConfigError(
                "num_training_steps is `fill` but there is no budget; "
                "set budget_flops (such as 1e13) or a number of steps"
            )
        steps = affordable_steps(config, config.budget_flops, config.convention)
        if steps == 0:
            raise ConfigError(_no_step(config, config.budget_flops, config.convention))
    filled = config.with_changes(num_training_steps=steps)
    return filled.with_changes(
        num_warmup_steps=min(filled.warmup_steps, steps),
        warmup_fraction=None,
        min_lr=filled.final_lr,
        min_lr_ratio=None,
    )


def admit(proposal: RunConfig | Mapping[str, Any], limits: Limits) -> Admitted | Rejected:
    """Decide whether a configuration, or plain data in the form of a run's YAML, may run.

    Admitted is the filled configuration, whose charge is at most the budget.
    """
    if isinstance(proposal, RunConfig):
        config = proposal
    else:
        try:
            config = parse(RunConfig, proposal, "proposal")
        except ConfigError as error:
            return Rejected(error.reason, str(error).removeprefix("proposal: "))
    config = config.with_changes(budget_flops=limits.budget_flops, convention=limits.convention)
    n_params = config.n_params
    per_step = config.flops_per_step(limits.convention)
    if per_step > limits.budget_flops:
        return Rejected(
            Reason.OVER_BUDGET,
            _no_step(config, limits.budget_flops, limits.convention),
            excess=per_step / limits.budget_flops,
            n_params=n_params,
            tokens=config.tokens_per_step,
            charge_flops=per_step,
        )
    config = fill(config)
    charge = per_step * config.steps
    refusal = (
        _over_budget(config, charge, limits)
        or _too_little_validation(config, limits.data)
        or _too_many_epochs(config, limits.data)
    )
    memory = None
    if refusal is None and limits.device is not None:
        memory = memory_needed(config, limits.device)
        refusal = _out_of_memory(memory, limits.device)
    if refusal is not None:
        return dataclasses.replace(
            refusal, n_params=n_params, tokens=config.total_tokens, charge_flops=charge
        )
    return Admitted(config, charge, memory, epochs(config, limits.data))


def memory_needed(config: RunConfig, device: DeviceInfo) -> int:
    """Estimated peak memory of the run on a device, in bytes."""
    bf16 = device.bf16 if config.autocast == "auto" else config.autocast == "bf16"
    return estimate_memory_bytes(config, device.kind, bf16=bf16)


def epochs(config: RunConfig, data: DataFacts | None) -> float | None:
    """Passes of a filled configuration over its training data; None when their size is unknown.

    An encoder-decoder passes over pairs, whatever of them it cuts off or pads.
    """
    used, there, _ = _use_of(config, data)
    return used / there if there else None


def _use_of(config: RunConfig, data: DataFacts | None) -> tuple[int, int | None, str]:
    """How much a run trains on, how much there is, and of what."""
    if config.architecture == "encoder-decoder":
        used = config.steps * config.sequences_per_step
        return used, data.train_pairs if data else None, "pairs"
    return config.total_tokens, data.train_tokens if data else None, "tokens"


def _over_budget(config: RunConfig, charge: int, limits: Limits) -> Rejected | None:
    if charge <= limits.budget_flops:
        return None
    affordable = affordable_steps(config, limits.budget_flops, limits.convention)
    return Rejected(
        Reason.OVER_BUDGET,
        f"{config.steps:,} steps cost {charge:.4g} FLOPs ({limits.convention}), "
        f"{charge / limits.budget_flops:.3g} times the budget of {limits.budget_flops:.4g}; "
        f"it affords {affordable:,} steps",
        charge / limits.budget_flops,
    )


def _too_little_validation(config: RunConfig, data: DataFacts | None) -> Rejected | None:
    if data is None:
        return None
    if config.architecture == "encoder-decoder":
        there = data.val_pairs
        needed, what = MIN_VALIDATION_WINDOWS, "pairs of source and target"
    else:
        there = data.val_tokens
        needed = MIN_VALIDATION_WINDOWS * config.seq_len
        what = f"tokens ({MIN_VALIDATION_WINDOWS} windows of seq_len = {config.seq_len})"
    if there is None or there >= needed:
        return None
    return Rejected(
        Reason.TOO_LITTLE_VALIDATION_DATA,
        f"a validation pass needs {needed:,} {what}; there are {there:,}",
        needed / max(1, there),
    )


def _too_many_epochs(config: RunConfig, data: DataFacts | None) -> Rejected | None:
    passes, (used, there, what) = epochs(config, data), _use_of(config, data)
    if passes is None or passes <= config.data.max_epochs:
        return None
    return Rejected(
        Reason.TOO_MANY_EPOCHS,
        f"{used:,} {what} are {passes:.3g} passes over the {there:,} training {what}; allowed are "
        f"{config.data.max_epochs:g} (data.max_epochs)",
        passes / config.data.max_epochs,
    )


def _out_of_memory(memory: int, device: DeviceInfo) -> Rejected | None:
    if memory <= device.memory_bytes:
        return None
    return Rejected(
        Reason.OUT_OF_MEMORY,
        f"would need about {memory / 2**30:.3g} GiB; {device.name} has "
        f"{device.memory_bytes / 2**30:.3g} GiB for it",
        memory / max(1, device.memory_bytes),
    )


def _no_step(config: RunConfig, budget_flops: int, convention: Convention) -> str:
    per_step = config.flops_per_step(convention)
    return (
        f"one optimiser step of {config.tokens_per_step:,} tokens costs {per_step:.4g} FLOPs "
        f"({convention}), {per_step / budget_flops:.3g} times the whole budget of "
        f"{budget_flops:.4g}"
    )
