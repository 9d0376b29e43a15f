"""Three short runs before a long one: is the learning rate that the rule gives the right one?

The rule says how the best rate falls with the tokens, not whether the trial had the best one. So
the promoted shape is trained at `SHARE` of the promotion's budget with ½, 1 and 2 times the rule's
rate there, and the long run takes the factor that was best. What they cost is taken from the
promotion's own budget, which is never exceeded.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

from budgetsweep.config import parse
from budgetsweep.constraint import Limits
from studies.database.store import Store
from studies.database.tables import Study
from studies.execution.local_pool import WorkerPool
from studies.promotion.rescaling import promoted_config
from studies.promotion.selection import Selection
from studies.simulation.pool import SimulatedPool
from trainer.config import RunConfig

if TYPE_CHECKING:
    from studies.promotion.promote import PromoteHooks, PromoteSettings

FACTORS = (1.0, 0.5, 2.0)
SHARE = 0.03
"""Of the promotion's budget, for each of the three (*assumption*)."""


def check_lr(
    store: Store,
    study: Study,
    selection: Selection,
    settings: PromoteSettings,
    pool: WorkerPool | SimulatedPool,
    hooks: PromoteHooks,
) -> float | None:
    """Train the three short runs, or what is missing of them.

    Returns:
        The best factor; None: they were interrupted, the same call continues.
    """
    from studies.promotion.promote import run_promotion

    scale = check_scale(settings.scale)
    trial = parse(RunConfig, selection.trial.config, f"trial {selection.trial.number}")
    limits = Limits(int(scale * study.budget_flops), study.convention, pool.device())
    rule, _ = promoted_config(trial, limits.budget_flops, settings.overrides, limits)
    losses: dict[float, float] = {}
    for factor in FACTORS:
        hooks.observer.message(
            f"learning-rate check: x{factor:g} at {scale:g} times the search's budget"
        )
        rates = scaled_rates(rule, factor)
        short = dataclasses.replace(
            settings, scale=scale, check_lr=False, output_dir=None,
            overrides=(*settings.overrides, *rates),
        )  # fmt: skip
        run = run_promotion(store, study, selection, short, pool, hooks).run
        if run is None or run.status not in ("complete", "failed"):
            return None
        losses[factor] = math.inf if run.val_loss_nats is None else run.val_loss_nats
    best = min(FACTORS, key=lambda factor: losses[factor])
    told = ", ".join(f"x{factor:g}: {losses[factor]:.4f}" for factor in sorted(FACTORS))
    edge = "" if best == 1.0 else "; the best may lie further out"
    hooks.observer.message(f"learning-rate check: {told}; the promotion takes x{best:g}{edge}")
    return best


def scaled_rates(rule: RunConfig, factor: float) -> tuple[str, str]:
    """Overrides that multiply the learning rate of a run, first to last."""
    return f"max_lr={rule.max_lr * factor:.4g}", f"min_lr={rule.final_lr * factor:.4g}"


def check_scale(scale: float) -> float:
    """Budget of each of the three runs, as a multiple of the study's."""
    return scale * SHARE


def budget_left(scale: float, budget_flops: int) -> int:
    """Training FLOPs of the long run after the checks; together they never pass its budget.

    Args:
        scale: of the promotion.
        budget_flops: the study's.
    """
    return int(scale * budget_flops) - len(FACTORS) * int(check_scale(scale) * budget_flops)
