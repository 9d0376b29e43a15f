"""The benchmark of promotions: nothing beats the best possible, and both answers are held to it."""

from __future__ import annotations

import argparse

from benchmarks.promotion import best_in, markdown, one_seed


def arguments(world: str, trials: int) -> argparse.Namespace:
    return argparse.Namespace(
        world=world, budget=1e13, scale=10.0, trials=trials, rungs="0.3,1", sampler="qmc",
        measured_only=False,
    )  # fmt: skip


def test_regret_is_measured_against_what_nobody_beats() -> None:
    args = arguments("hoffmann2022", trials=9)
    best = best_in("hoffmann2022", 1e13, 10.0)
    assert best.world.true_loss(best.config) == best.loss_nats
    row = one_seed(args, 0)
    for name in ("predicted", "measured"):
        assert row[name]["regret"] == row[name]["loss"] - best.loss_nats >= 0
    assert row["regret_here"] >= 0
    assert 0 < row["budgets"] <= 4 * 0.3 + 5
    facts = {"command": "c", "machine": "m", "commit": "x"}
    text = markdown([row], args, facts)
    assert f"| measured | {row['measured']['regret']:.3f} |" in text


def test_drawn_worlds_are_one_a_seed() -> None:
    args = arguments("drawn", trials=6)
    rows = [one_seed(args, seed) for seed in (0, 1)]
    assert [row["world"] for row in rows] == ["drawn-0", "drawn-1"]
    assert rows[0]["best"] != rows[1]["best"]
    for row in rows:
        assert row["best"] == best_in(row["world"], 1e13, 10.0).loss_nats
