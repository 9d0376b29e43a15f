"""Proposals: a pure function of (seed, number, results), whole in the database or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import optuna
import pytest
from optuna.trial import TrialState

from budgetsweep.constraint import Limits
from budgetsweep.errors import ConfigError
from studies.samplers import window
from studies.samplers.base import SearchProblem
from studies.samplers.grid import SpaceExhausted
from studies.samplers.proposals import Proposals
from studies.space.search_space import SamplerName, SearchSpace, space_from_dict

PARAMETERS: dict[str, Any] = {
    "n_embd": {"min": 16, "max": 256, "step": 16},
    "n_layer": {"values": [1, 2, 4, 8]},
    "head_dim": {"value": 16},
    "seq_len": {"values": [32, 64, 128]},
    "batch_size": {"values": [4, 8]},
    "max_lr": {"min": 1e-4, "max": 1e-1, "distribution": "log_uniform_values"},
}
FIRST = {"n_embd": 64, "n_layer": 2, "seq_len": 64, "batch_size": 4, "max_lr": 1e-2}


def space(**changes: Any) -> SearchSpace:
    return space_from_dict({"parameters": {**PARAMETERS, **changes}}, "t")


def open_proposals(
    path: Path, sampler: SamplerName = "tpe", *, seed: int = 0, pruning: bool = False,
    first: dict[str, Any] | None = FIRST, of: SearchSpace | None = None,
) -> Proposals:  # fmt: skip
    base = {"tokenizer_encoding": "bytes", "data": {"source": "demo"}}
    problem = SearchProblem(of or space(), Limits(10**13), base, seed, first)
    return Proposals(f"sqlite:///{path}", "s", problem, sampler, pruning)


def loss_of(settings: dict[str, Any]) -> float:
    return abs(settings["n_embd"] - 100) / 100 + 10 * settings["max_lr"] + settings["n_layer"] / 9


def run(proposals: Proposals, n: int) -> list[dict[str, Any]]:
    """The next n proposals, each of which has ended."""
    settings = []
    for _ in range(n):
        proposal = proposals.propose()
        if proposal.number % 5 == 3:
            proposals.fail(proposal.number)
        else:
            proposals.complete(proposal.number, loss_of(proposal.settings))
        settings.append(proposal.settings)
    return settings


def run_parts(path: Path, sampler: SamplerName, *parts: int, seed: int = 0) -> list[dict[str, Any]]:
    """Proposals of a search that is closed and opened again after each part."""
    settings = []
    for n in parts:
        proposals = open_proposals(path, sampler, seed=seed)
        settings += run(proposals, n)
        proposals.close()
    return settings


@pytest.mark.slow
@pytest.mark.parametrize("sampler", [name for name in get_args(SamplerName) if name != "grid"])
def test_a_search_closed_and_opened_at_any_point_proposes_the_same(
    tmp_path: Path, sampler: SamplerName
) -> None:
    expected = run_parts(tmp_path / "straight.db", sampler, 16)
    resumed = run_parts(tmp_path / "resumed.db", sampler, 1, 2, 9, 4)
    assert resumed == expected
    assert resumed[0] == FIRST
    assert run_parts(tmp_path / "other.db", sampler, 16, seed=1)[1:] != expected[1:]


@pytest.fixture
def small_window(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WINDOW_TRIALS": 14, "WINDOW_BEST": 4, "WINDOW_STEP": 5}.items():
        monkeypatch.setattr(window, name, value)


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["tpe", "gp"])
def test_a_long_search_resumed_anywhere_proposes_the_same(
    tmp_path: Path, sampler: SamplerName, small_window: None
) -> None:
    straight = open_proposals(tmp_path / "straight.db", sampler)
    expected = run(straight, 34)
    seen = {trial.number for trial in straight._window._study.get_trials()}  # type: ignore[union-attr]
    straight.close()
    assert len(seen) == 14 + 4  # chosen at 30, proposals 30 to 33
    assert run_parts(tmp_path / "resumed.db", sampler, 13, 2, 3, 9, 7) == expected


def test_the_window_keeps_the_best_and_the_latest(tmp_path: Path, small_window: None) -> None:
    proposals = open_proposals(tmp_path / "s.db")
    for number in range(41):
        proposal = proposals.propose()
        if number in (7, 39):
            proposals.fail(number)
        elif number != 20:  # still running
            proposals.complete(number, float((number - 12) ** 2))
        assert proposal.number == number
    assert set(proposals._window._places) == {11, 12, 13, 10} | {20} | set(range(30, 41)) - {39}
    proposals.complete(20, 0.0)
    proposals.close()


def test_a_record_that_a_kill_left_behind_is_caught_up(tmp_path: Path) -> None:
    expected = run_parts(tmp_path / "straight.db", "tpe", 15)
    killed = open_proposals(tmp_path / "killed.db")
    run(killed, 11)
    killed.record()
    known = {}  # what our own tables hold
    for number in (11, 12):
        known[number] = killed.propose().settings
        killed.complete(number, loss_of(known[number]))
    assert killed._record is not None
    killed._record._engine.dispose()  # nothing more is written
    again = open_proposals(tmp_path / "killed.db")
    assert len(again) == 11
    for number, settings in known.items():
        again.restore(number, settings)
        again.restore(number, settings)  # known by now
        again.complete(number, loss_of(settings))
    assert [expected[11], expected[12]] == list(known.values())
    assert [again.propose().settings for _ in range(1)] == [expected[13]]
    again.close()
    stored = optuna.load_study(study_name="s", storage=f"sqlite:///{tmp_path / 'killed.db'}").trials
    assert [trial.number for trial in stored] == list(range(14))
    assert stored[12].value == loss_of(known[12])


def test_a_proposal_is_on_record_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    proposals = open_proposals(path)
    proposal = proposals.propose()
    assert optuna.load_study(study_name="s", storage=f"sqlite:///{path}").trials == []
    proposals.record()
    stored = optuna.load_study(study_name="s", storage=f"sqlite:///{path}").trials
    assert [trial.state for trial in stored] == [TrialState.RUNNING]
    assert stored[0].user_attrs["settings"] == proposal.settings
    assert set(stored[0].params) == set(space().distributions())
    proposals.close()
    again = open_proposals(path)
    assert again.open_proposals() == [proposal]
    again.complete(proposal.number, 1.0)
    assert again.open_proposals() == []
    again.complete(proposal.number, 2.0)  # told twice: the first word stands
    again.close()
    assert optuna.load_study(study_name="s", storage=f"sqlite:///{path}").best_value == 1.0


def test_failed_proposals_do_not_shrink_what_tpe_varies(tmp_path: Path) -> None:
    proposals = open_proposals(tmp_path / "s.db", first=None)
    for _ in range(12):
        proposals.fail(proposals.propose().number)
    for _ in range(12):
        proposal = proposals.propose()
        assert set(proposal.settings) == set(space().distributions())
        proposals.complete(proposal.number, loss_of(proposal.settings))
    proposals.close()


def test_a_grid_visits_every_point_once_and_ends(tmp_path: Path) -> None:
    small = space(n_embd=[16, 32], n_layer=[1, 2, 3], seq_len=64, max_lr=[1e-3, 1e-2])
    first = {"n_embd": 16, "n_layer": 3, "batch_size": 8, "max_lr": 1e-2}
    proposals = open_proposals(tmp_path / "g.db", "grid", of=small, first=first)
    seen = [proposals.propose().settings for _ in range(25)]
    with pytest.raises(SpaceExhausted):
        proposals.propose()
    proposals.close()
    assert seen[0] == first
    assert len({tuple(sorted(s.items())) for s in seen[1:]}) == small.size() == 24


def test_a_grid_over_a_continuous_range_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="max_lr is continuous"):
        open_proposals(tmp_path / "g.db", "grid")


def test_quasi_random_points_fill_the_space_evenly(tmp_path: Path) -> None:
    proposals = open_proposals(tmp_path / "q.db", "qmc", first=None)
    widths = [proposals.propose().settings["n_embd"] for _ in range(16)]
    proposals.close()
    assert len(set(widths)) == 16  # 16 points, 16 widths: each once, as Sobol points must


def test_a_stuck_sampler_is_replaced_by_chance(tmp_path: Path) -> None:
    proposals = open_proposals(tmp_path / "r.db", "qmc", first=None)
    usual = proposals.propose(rejected_in_a_row=0).settings
    proposals.close()
    other = open_proposals(tmp_path / "r2.db", "qmc", first=None)
    assert other.propose(rejected_in_a_row=30).settings != usual
    other.close()


def test_the_median_is_taken_at_equal_shares_of_the_budget(tmp_path: Path) -> None:
    path = tmp_path / "p.db"
    proposals = open_proposals(path, "random", pruning=True)
    for loss in (1.0, 2.0, 3.0, 4.0, 5.0):
        number = proposals.propose().number
        assert not proposals.report(number, 0.5, loss)  # too few finished trials to judge
        proposals.complete(number, loss)
    proposals.close()
    again = open_proposals(path, "random", pruning=True)  # what was reported is kept
    assert again.report(again.propose().number, 0.5, 3.1)
    assert not again.report(again.propose().number, 0.5, 2.9)
    assert not again.report(again.propose().number, 0.25, 9.0)  # nobody reported at a quarter
    again.prune(5)
    again.close()
