"""Cooldown branches: several budgets from one run of a warm-up-stable-decay schedule. No torch.

A run of n steps whose rate is constant between its warm-up and its cooldown is, up to where its
cooldown begins, the beginning of every longer run of the same configuration. So the longest, the
*trunk*, keeps a checkpoint where a shorter one's cooldown would begin, and the shorter run starts
there: a *branch* (Zhai et al. 2022; Hägele et al. 2024). It ends with the weights of the same
configuration trained from scratch, for the cost of its cooldown alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from trainer.config import RunConfig


@dataclass(frozen=True)
class Lineage:
    """What of its own history a run keeps for branches, and what it has from a trunk."""

    kept_steps: frozenset[int] = frozenset()
    """Steps at which the run keeps a checkpoint that outlives its completion."""
    begins_from: Path | None = None
    """The kept checkpoint that a branch begins from; None: the run begins at step 0."""
    inherited_steps: int = 0
    """Steps of the branch's history that its trunk computed."""


WHOLE = Lineage()
"""A run with neither."""


def branch_start(config: RunConfig) -> int | None:
    """Steps that a filled configuration shares with every longer run of the same settings.

    None: it has no whole cooldown behind a constant rate (another schedule, or the warm-up reaches
    into the cooldown), so it is no branch.
    """
    if config.schedule != "wsd":
        return None
    start = config.steps - config.cooldown_steps
    return start if config.warmup_steps < start < config.steps else None


def branch_config(trunk: RunConfig, share: Fraction, budget_flops: int) -> RunConfig | None:
    """The run of a share of a trunk's steps that a branch of it is.

    Args:
        trunk: a filled configuration.
        share: of its steps, below 1.
        budget_flops: that the branch's history may cost, the trunk's part included.

    Returns:
        Its configuration, or None where no run of so few steps is a branch (`branch_start`).
    """
    steps = math.floor(share * trunk.steps)
    if steps < 1:
        return None
    config = trunk.with_changes(
        num_training_steps=steps,
        budget_flops=budget_flops,
        num_warmup_steps=trunk.warmup_steps,  # in steps: as a share it would change the trunk
        warmup_fraction=None,
    )
    return None if branch_start(config) is None else config


def kept_path(run_dir: Path, step: int) -> Path:
    """Where a trunk keeps the checkpoint of a step for its branches."""
    return run_dir / f"branch-{step:08d}.pt"


def kept_files(run_dir: Path) -> list[Path]:
    """The checkpoints that a trunk has kept."""
    return sorted(run_dir.glob("branch-*.pt"))


def remove_kept(run_dir: Path) -> None:
    """Delete them: all branches are done, or will never be."""
    for path in kept_files(run_dir):
        path.unlink(missing_ok=True)
