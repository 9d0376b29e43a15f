"""Cooldown branches: what a trunk and a branch share, and that a branch is the run from scratch."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from studies.simulation.simulated_run import simulate_run
from studies.simulation.worlds import DEFAULT_WORLD, WORLDS
from tests.support.tiny_runs import drive, tiny_config, tiny_data, weights
from trainer import run_state
from trainer.branches import (
    Lineage,
    branch_config,
    branch_start,
    kept_files,
    kept_path,
    remove_kept,
)
from trainer.checkpoints import checkpoint
from trainer.config import RunConfig
from trainer.data.shards.tokens import TokenData
from trainer.events import Checkpointed, RunResult
from trainer.flop_meter import read_executed_steps
from trainer.loop import train_run

SHARES = (Fraction("0.3"), Fraction("0.6"))


def trunk_config(**changes: Any) -> RunConfig:
    """A trunk of 30 steps with dropout; its branches of 9 and 18 begin after 7 and 14."""
    settings = {"num_training_steps": 30, "schedule": "wsd", "cooldown_fraction": 0.2}
    return tiny_config(**{**settings, **changes})


def branch(trunk: RunConfig, share: Fraction = SHARES[1]) -> RunConfig:
    """A branch that there must be."""
    config = branch_config(trunk, share, 10**15)
    assert config is not None
    return config


def start(config: RunConfig) -> int:
    """Where a branch begins."""
    step = branch_start(config)
    assert step is not None
    return step


def keeping(trunk: RunConfig) -> Lineage:
    """What the trunk keeps for both branches."""
    return Lineage(frozenset(start(branch(trunk, share)) for share in SHARES))


def from_trunk(config: RunConfig, trunk_dir: Path) -> Lineage:
    """The lineage of a branch."""
    step = start(config)
    return Lineage(begins_from=kept_path(trunk_dir, step), inherited_steps=step)


@pytest.fixture(scope="module")
def data() -> TokenData:
    return tiny_data()


@pytest.fixture(scope="module")
def trunk_dir(data: TokenData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a complete trunk that has kept both checkpoints."""
    folder = tmp_path_factory.mktemp("trunk")
    result, _ = drive(trunk_config(), data, folder, lineage=keeping(trunk_config()))
    assert (result.status, result.steps_executed) == ("complete", 30)
    return folder


@given(
    steps=st.integers(1, 3000),
    warmup=st.integers(0, 400) | st.floats(0.0, 0.5),
    cooldown=st.floats(0.001, 1.0),
    share=st.fractions(Fraction(1, 1000), 1).filter(lambda share: share < 1),
    ratio=st.floats(0.0, 1.0),
)
def test_a_branch_and_its_trunk_have_the_same_rates_up_to_where_it_begins(
    steps: int, warmup: float, cooldown: float, share: Fraction, ratio: float
) -> None:
    of_steps = isinstance(warmup, int)
    trunk = trunk_config(
        num_training_steps=steps, cooldown_fraction=cooldown, min_lr_ratio=ratio,
        num_warmup_steps=warmup if of_steps else None,
        warmup_fraction=None if of_steps else warmup,
    )  # fmt: skip
    config = branch_config(trunk, share, 10**15)
    if config is None:
        return
    begins, ends = start(config), config.steps
    assert 0 < begins < ends <= share * steps
    of_trunk, of_branch = trunk.lr_schedule(), config.lr_schedule()
    assert [of_trunk(t) for t in range(begins)] == [of_branch(t) for t in range(begins)]
    # The whole cooldown lies in the branch: from the peak to the end of the schedule.
    assert of_branch(begins - 1) == pytest.approx(trunk.max_lr)
    assert of_branch(ends) == config.final_lr == trunk.final_lr
    assert ends - begins == round(cooldown * ends)


@pytest.mark.parametrize(
    ("changes", "share"),
    [
        ({"schedule": "linear", "cooldown_fraction": None}, "0.5"),
        ({"schedule": "cosine", "cooldown_fraction": None}, "0.5"),
        ({"num_warmup_steps": 15}, "0.5"),  # longer than the branch
        ({"num_warmup_steps": 12}, "0.5"),  # reaches its cooldown: nothing is constant
        ({"cooldown_fraction": 1.0}, "0.5"),
        ({"cooldown_fraction": 0.2}, "0.05"),  # one step: no cooldown
        ({}, "0.01"),  # no step
    ],
)
def test_no_branch_where_there_is_no_whole_cooldown(changes: dict[str, Any], share: str) -> None:
    assert branch_config(trunk_config(**changes), Fraction(share), 10**15) is None


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_branch_is_the_run_from_scratch_bit_for_bit(
    data: TokenData, tmp_path: Path, optimizer: str
) -> None:
    """Dropout and gradient accumulation included; the trunk is not changed by what it keeps."""
    trunk = trunk_config(optimizer=optimizer)
    drive(trunk, data, tmp_path / "trunk", lineage=keeping(trunk))
    drive(trunk, data, tmp_path / "plain")
    assert_same_weights(tmp_path / "trunk", tmp_path / "plain")
    assert not kept_files(tmp_path / "plain")
    for share in SHARES if optimizer == "adamw" else SHARES[:1]:
        config, name = branch(trunk, share), f"{float(share)}"
        lineage = from_trunk(config, tmp_path / "trunk")
        ours, points = drive(config, data, tmp_path / name, lineage=lineage)
        whole, _ = drive(config, data, tmp_path / f"{name} from scratch")
        assert (ours.status, ours.step) == ("complete", config.steps)
        assert ours.val_loss_nats == whole.val_loss_nats
        assert ours.steps_executed == config.steps - start(config)
        assert whole.steps_executed == config.steps
        assert min(point.step for point in points) >= start(config)
        assert_same_weights(tmp_path / name, tmp_path / f"{name} from scratch")


def assert_same_weights(one: Path, other: Path) -> None:
    ours, theirs = weights(one), weights(other)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


@pytest.mark.parametrize("at_step", [14, 15, 17])
def test_an_interrupted_branch_ends_as_the_whole_one(
    data: TokenData, trunk_dir: Path, tmp_path: Path, at_step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_state, "PROGRESS_SECONDS", 0.0)  # an event at each step
    config = branch(trunk_config())
    lineage = from_trunk(config, trunk_dir)
    first, _ = drive(config, data, tmp_path / "parts", "interrupt", at_step, lineage)
    assert (first.status, first.step, first.steps_executed) == (
        "interrupted",
        at_step,
        at_step - 14,
    )
    second, _ = drive(config, data, tmp_path / "parts", lineage=lineage)
    assert (second.status, second.steps_executed) == ("complete", 4)
    drive(config, data, tmp_path / "whole", lineage=lineage)
    assert_same_weights(tmp_path / "parts", tmp_path / "whole")


def test_a_trunk_given_up_behind_a_branch_point_has_kept_it(
    data: TokenData, tmp_path: Path
) -> None:
    """It ends after step 10 without a word; the next attempt keeps the second checkpoint."""
    config = trunk_config(checkpoint_seconds=0.0)
    run = train_run(config, data, tmp_path, keeping(config))
    while next(run) != Checkpointed(10):
        pass
    run.close()
    assert [path.name for path in kept_files(tmp_path)] == ["branch-00000007.pt"]
    result, _ = drive(trunk_config(), data, tmp_path, lineage=keeping(trunk_config()))
    assert (result.status, result.steps_executed) == ("complete", 30)
    assert [path.name for path in kept_files(tmp_path)] == [
        "branch-00000007.pt", "branch-00000014.pt",
    ]  # fmt: skip
    assert not checkpoint.checkpoint_files(tmp_path)
    assert all(checkpoint.is_whole(path) for path in kept_files(tmp_path))
    remove_kept(tmp_path)
    assert not kept_files(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        {"max_lr": 2e-2},
        {"num_warmup_steps": 2},
        {"min_lr_ratio": 0.2},
        {"batch_size": 5},
        {"shape": {"n_layer": 1}},
        {"num_evals": 3},
    ],
)
def test_another_runs_checkpoint_is_nothing_to_begin_from(
    data: TokenData, trunk_dir: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    config = branch(trunk_config(**changes))
    assert start(config) == 14
    assert_nothing_to_begin_from(config, data, kept_path(trunk_dir, 14), tmp_path, "another run")


def test_a_checkpoint_of_another_step_or_of_none_is_nothing_to_begin_from(
    data: TokenData, trunk_dir: Path, tmp_path: Path
) -> None:
    config = branch(trunk_config())
    damaged = tmp_path / "damaged.pt"
    damaged.write_bytes(kept_path(trunk_dir, 14).read_bytes()[:-1])
    assert not checkpoint.is_whole(damaged)
    cooled = kept_path(tmp_path, 14)
    keeping_late = Lineage(frozenset({14}))  # of a trunk that is cooling down by then
    drive(trunk_config(num_training_steps=16), data, tmp_path / "short", lineage=keeping_late)
    cooled = kept_path(tmp_path / "short", 14)
    for path, why in (
        (kept_path(trunk_dir, 7), "another run"),
        (cooled, "another run"),
        (damaged, "damaged"),
        (tmp_path / "none.pt", "cannot be read"),
    ):
        assert_nothing_to_begin_from(config, data, path, tmp_path / path.stem, why)


def assert_nothing_to_begin_from(
    config: RunConfig, data: TokenData, path: Path, run_dir: Path, why: str
) -> None:
    """The run fails in one line and computes nothing."""
    lineage = Lineage(begins_from=path, inherited_steps=14)
    result, _ = drive(config, data, run_dir, lineage=lineage)
    assert (result.status, result.step, result.steps_executed) == ("failed", 14, 0)
    assert why in str(result.reason)
    assert "\n" not in str(result.reason)


def test_a_branch_with_a_damaged_meter_did_not_execute_the_trunks_steps(tmp_path: Path) -> None:
    for step in (15, 17):
        (tmp_path / f"checkpoint-{step:08d}.pt").touch()
    (tmp_path / "meter.bin").write_bytes(b"damaged!")
    assert read_executed_steps(tmp_path, 14) == 3
    assert read_executed_steps(tmp_path) == 17


def test_a_simulated_branch_measures_what_the_run_from_scratch_would() -> None:
    world = WORLDS[DEFAULT_WORLD]
    trunk = trunk_config(
        trainer="simulated", world=DEFAULT_WORLD, num_training_steps=1000, num_warmup_steps=20
    )
    config = branch(trunk)
    begins = start(config)
    ours, points = simulated(config, begins)
    whole, _ = simulated(config, 0)
    assert ours.val_loss_nats == whole.val_loss_nats == world.measured_loss(config)
    assert ours.steps_executed == config.steps - begins
    assert (whole.steps_executed, ours.step) == (config.steps, config.steps)
    assert points[0] > begins


def test_a_simulated_branch_does_not_diverge_where_its_trunk_has_not() -> None:
    """The world's limit grows a little with the tokens, so the run from scratch would."""
    world = WORLDS[DEFAULT_WORLD]
    trunk = trunk_config(trainer="simulated", world=DEFAULT_WORLD, num_training_steps=1000)
    rate = 0.99 * world.diverges_at * world.best_lr(trunk, float(trunk.total_tokens))
    trunk = trunk.with_changes(max_lr=rate)
    config = branch(trunk, SHARES[0])
    assert simulated(trunk, 0)[0].status == "complete"
    assert simulated(config, 0)[0].status == "failed"
    assert simulated(config, start(config))[0].status == "complete"


def simulated(config: RunConfig, inherited_steps: int) -> tuple[RunResult, list[int]]:
    """The result and the steps of all events."""
    run = simulate_run(config, inherited_steps=inherited_steps)
    steps = []
    while True:
        try:
            steps.append(next(run).step)
        except StopIteration as stop:
            return stop.value, steps
