"""Simulated worlds and runs: the law, the terms around it, the events, what they leave behind."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from budgetsweep.constraint import Admitted, Limits, admit
from budgetsweep.errors import CheckpointError, ConfigError
from studies.simulation.backend import recorded
from studies.simulation.simulated_run import simulate_run
from studies.simulation.worlds import DEFAULT_WORLD, WORLDS, drawn_world, world_named
from trainer.config import RunConfig
from trainer.events import Command, Point, RunResult
from trainer.export.formats import weights_file

WORLD = WORLDS[DEFAULT_WORLD]


def filled(budget: float = 1e15, **changes: Any) -> RunConfig:
    """A simulated configuration at a budget; keywords replace settings."""
    width, depth = changes.pop("width", 128), changes.pop("depth", 4)
    data: dict[str, Any] = {
        "model_config": {
            "n_embd": width, "n_head": width // 32, "n_positions": 128, "n_layer": depth,
            "p_dropout": 0.0,
        },
        "batch_size": 64, "seq_len": 128, "max_lr": 5e-3, "warmup_fraction": 0.05,
        **changes,
    }  # fmt: skip
    answer = admit(data, Limits(int(budget)))
    assert isinstance(answer, Admitted), answer
    return answer.config


def play(config: RunConfig, *commands: Command | None, folder: Path | None = None) -> Any:
    """Points and result of a run that is sent commands in answer to its first events."""
    run, points = simulate_run(config, WORLD), []
    if folder is not None:
        run = recorded(run, config, folder, WORLD.checksum)
    answers = iter(commands)
    try:
        event = next(run)
        while True:
            if isinstance(event, Point):
                points.append(event)
                event = run.send(next(answers, None))
            else:
                event = run.send(None)
    except StopIteration as stop:
        return points, stop.value


@given(st.sampled_from(sorted(WORLDS)), st.floats(12.5, 17.5), st.sampled_from((64, 128, 256)))
def test_more_flops_are_never_worse_with_all_else_at_its_best(
    name: str, exponent: float, width: int
) -> None:
    """Only the law's own tokens differ: the settings' terms are left out."""
    world = WORLDS[name]
    less, more = filled(10**exponent, width=width), filled(3 * 10**exponent, width=width)
    losses = [world.loss_at(c, float(c.total_tokens), 0.0, 0.0) for c in (less, more)]
    assert losses[0] > losses[1] > world.law.E
    assert max(losses) <= math.log(50257)


def test_the_law_is_the_published_one_where_it_holds() -> None:
    config = filled(1e17)
    tokens = float(config.total_tokens)
    expected = WORLD.law.loss(float(config.n_params), tokens)
    assert WORLD.loss_at(config, tokens, 0.0, 0.0) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("name", sorted(WORLDS))
def test_the_best_rate_and_batch_are_the_best(name: str) -> None:
    world = WORLDS[name]
    rate = world.best_lr(filled(), float(filled().total_tokens))
    at_best = world.settings_nats(filled(max_lr=rate))
    off = [world.settings_nats(filled(max_lr=rate * factor)) - at_best for factor in (0.5, 2.0)]
    assert off[0] == pytest.approx(off[1], rel=0.02)
    assert off[0] == pytest.approx(world.lr_curvature * math.log(2) ** 2, rel=0.05)
    batches = {b: filled(batch_size=b) for b in (2, 8, 32, 128, 512)}
    fixed = dataclasses.replace(world, lr_curvature=0.0)
    best = min(batches, key=lambda b: fixed.settings_nats(batches[b]))
    wanted = world.best_batch_tokens(float(filled().total_tokens)) / 128
    assert 0.45 < best / wanted < 2.3


def test_noise_is_the_seed_s_alone_and_has_its_spread() -> None:
    config = filled()
    again = config.with_changes(output_dir="elsewhere", num_reports=7, device="cpu")
    assert WORLD.measured_loss(again) == WORLD.measured_loss(config)
    losses = [WORLD.measured_loss(config.with_changes(seed=seed)) for seed in range(400)]
    true, sd = WORLD.true_loss(config), WORLD.noise_sd(float(config.total_tokens))
    assert np.std(losses) == pytest.approx(sd, rel=0.12)
    assert np.mean(losses) == pytest.approx(true, abs=0.2 * sd)
    assert WORLD.noise_sd(1e7) > WORLD.noise_sd(1e9)


def test_a_run_tells_what_a_real_one_would() -> None:
    config = filled(num_reports=10, num_evals=4)
    points, result = play(config)
    assert isinstance(result, RunResult)
    assert (result.status, result.step) == ("complete", config.steps)
    assert result.val_loss_nats == WORLD.measured_loss(config) == points[-1].val_loss_nats
    assert points[-1].flops == config.steps * config.flops_per_step("nanogpt") <= 10**15
    assert points[-1].tokens == config.total_tokens == result.tokens
    assert len([p for p in points if p.val_loss_nats is not None]) == 4
    steps = [p.step for p in points]
    assert steps == sorted(set(steps))
    assert play(config)[0] == points


def test_the_loss_is_higher_while_the_rate_is() -> None:
    decayed = filled(num_evals=2, schedule="linear", min_lr_ratio=0.0)
    constant = decayed.with_changes(schedule="wsd", cooldown_fraction=0.25)
    middle = [next(p for p in play(c)[0] if p.val_loss_nats) for c in (decayed, constant)]
    rates = [p.lr for p in middle]
    losses = [p.val_loss_nats for p in middle]
    assert rates[1] > rates[0]
    assert losses[1] - losses[0] == pytest.approx(WORLD.anneal_nats * 0.475, abs=0.05)


def test_a_rate_far_too_high_ends_as_in_earnest() -> None:
    from studies.diagnosis.facts import CurveFacts

    config = filled(max_lr=0.9)
    points, result = play(config)
    assert result.status == "failed"
    assert math.isinf(WORLD.true_loss(config))
    assert CurveFacts.of_config(config.to_dict(), failure=result.reason).diverged
    assert 0 <= result.step == result.steps_executed - 1
    assert all(point.step <= result.step for point in points)
    limit = WORLD.diverges_at * WORLD.best_lr(config, float(config.total_tokens))
    failing = result.step  # t of the failing step
    assert config.max_lr * failing / config.warmup_steps > limit
    assert config.max_lr * (failing - 1) / config.warmup_steps <= limit


def test_commands_stop_a_run() -> None:
    config = filled(num_reports=4, num_evals=4)
    points, pruned = play(config, None, "prune")
    assert (pruned.status, pruned.step, len(points)) == ("pruned", points[1].step, 2)
    _, interrupted = play(config, "interrupt")
    assert (interrupted.status, interrupted.step) == ("interrupted", 0)
    assert interrupted.steps_executed == points[0].step


def test_a_folder_holds_all_but_weights(tmp_path: Path) -> None:
    config = filled()
    points, result = play(config, folder=tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.yaml", "curve.csv", "eval.json"]
    assert play(config, folder=tmp_path) == (points, result)
    with pytest.raises(CheckpointError, match=r"no model\.pt"):
        weights_file(tmp_path)


def test_drawn_worlds_are_many_and_each_is_one() -> None:
    worlds = [drawn_world(seed) for seed in range(200)]
    assert world_named("drawn-17") == worlds[17]
    assert len({world.checksum for world in worlds}) == 200
    assert {world.counts for world in worlds} == {"body", "charged"}
    sizes = [world.law.best_params(1e15) for world in worlds]
    losses = [
        world.law.loss(size, 1e15 / 6 / size) for world, size in zip(worlds, sizes, strict=True)
    ]
    assert np.median(sizes) == pytest.approx(3.4e6, rel=0.1)
    assert np.std(np.log(sizes)) == pytest.approx(0.4, rel=0.2)
    assert (np.mean(losses), np.std(losses)) == pytest.approx((5.0, 0.4), rel=0.15)
    wrong = "nowhere drawn drawn- drawn--1 drawn-1.5 drawn-1x drawn-12345678901"
    for name in wrong.split():
        with pytest.raises(ConfigError, match="expected one of"):
            world_named(name)


def test_simulating_needs_no_torch() -> None:
    code = (
        "import sys, studies.search, studies.promotion.promote, studies.simulation.simulated_run\n"
        "import studies.simulation.worlds\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
