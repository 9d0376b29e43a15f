"""The benchmark of promotions: nothing beats the best possible, and both answers are held to it."""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.promotion import best_possible, markdown, one_seed, settings_for
from budgetsweep.constraint import Limits
from trainer.worlds import world_named


def test_regret_is_measured_against_what_nobody_beats(tmp_path: Path) -> None:
    args = argparse.Namespace(
        world="hoffmann2022", budget=1e13, scale=10.0, trials=9, rungs="0.3,1", sampler="qmc",
        measured_only=False, trunks=None,
    )  # fmt: skip
    world = world_named(args.world)
    settings = settings_for(args, tmp_path, 0)
    limits = Limits(10**14, settings.convention)
    best, config = best_possible(world, settings.resolved_space(), settings.base(), limits)
    assert world.true_loss(config) == best
    row = one_seed(args, 0, best, world)
    for name in ("predicted", "measured"):
        assert row[name]["regret"] == row[name]["loss"] - best >= 0
    assert 0 < row["budgets"] <= 4 * 0.3 + 5
    facts = {"command": "c", "machine": "m", "commit": "x"}
    text = markdown([row], args, facts, {"loss": best, "n_params": config.n_params})
    assert f"| measured | {row['measured']['regret']:.3f} |" in text
