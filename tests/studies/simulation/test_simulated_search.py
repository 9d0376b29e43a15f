"""Searches whose runs are simulated: the whole product but the training."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from budgetsweep.constraint import Limits
from budgetsweep.errors import ConfigError, StudyError
from reports.build import write_report
from reports.facts import Facts
from reports.read import read_study
from studies.database.store import Store
from studies.execution.training import Training
from studies.promotion.promote import PromoteHooks, PromoteSettings, promote
from studies.samplers.base import SearchProblem
from studies.samplers.proposals import Proposals
from studies.search import Hooks, search
from studies.settings import SearchSettings
from studies.simulation.backend import Simulated
from studies.simulation.worlds import DEFAULT_WORLD, WORLDS
from studies.space.rungs import Rungs
from studies.space.search_space import SamplerName, Value
from tests.studies.test_search import facts
from tests.support.commands import run as command
from tests.support.commands import run_json
from tests.support.searches import Crash, simulated, trials
from trainer.config import RunConfig


@pytest.mark.parametrize("sampler", ["qmc", "tpe", "law"])
def test_a_search_goes_on_as_if_it_had_never_stopped(tmp_path: Path, sampler: str) -> None:
    for name in ("straight", "crashed"):
        (tmp_path / name).mkdir()
    straight = simulated(tmp_path / "straight", sampler=sampler)
    assert search(straight, Hooks()).n_finished == 8
    crashed = simulated(tmp_path / "crashed", sampler=sampler)
    for when in ("started", "ended"):
        with pytest.raises(KeyboardInterrupt):
            search(crashed, Hooks(observer=Crash(3, when)))
    assert search(crashed, Hooks()).n_finished == 8
    assert facts(trials(crashed)) == facts(trials(straight))
    with Store.open(crashed.storage) as store:
        ledger = store.ledger(store.study(None).id)
    assert ledger.spent.nanogpt == ledger.planned.nanogpt  # lost runs had computed nothing yet


def test_losses_are_those_of_the_world(tmp_path: Path) -> None:
    settings = simulated(tmp_path)
    search(settings, Hooks())
    for run in trials(settings):
        config = RunConfig.model_validate(run.config)
        assert run.val_loss_nats == WORLDS[DEFAULT_WORLD].measured_loss(config)
        assert run.planned_flops("nanogpt") <= 10**15
        assert (run.device_name, run.train_seconds) == ("simulated", 0.0)
    assert not settings.folder.exists()


def test_workers_and_pruning(tmp_path: Path) -> None:
    settings = simulated(tmp_path, workers=3, pruning=True, trials=20)
    assert search(settings, Hooks()).n_finished == 20
    statuses = [run.status for run in trials(settings)]
    assert {"pruned", "complete"} <= set(statuses)


def test_a_simulated_study_is_never_mixed(tmp_path: Path) -> None:
    settings = simulated(tmp_path, trials=1, study="s")
    search(settings, Hooks())
    for other in (Training(), Simulated("hoffmann2022")):
        with pytest.raises(StudyError, match="another source of losses"):
            search(simulated(tmp_path, backend=other, study="s"), Hooks())
    with pytest.raises(ConfigError, match="of decoders"):
        simulated(tmp_path, overrides=("architecture=encoder",)).resolved_space()


def test_a_promotion_is_simulated_too(tmp_path: Path) -> None:
    settings = simulated(tmp_path)
    search(settings, Hooks())
    asked = PromoteSettings(storage=settings.storage, scale=30)
    run = promote(asked, PromoteHooks()).run
    assert run is not None
    assert run.status == "complete"
    assert run.val_loss_nats < min(t.val_loss_nats for t in trials(settings))  # type: ignore[operator, type-var]
    assert sorted(p.name for p in Path(str(run.output_dir)).iterdir()) == [
        "config.yaml", "curve.csv", "eval.json",
    ]  # fmt: skip
    assert promote(asked, PromoteHooks()).run.id == run.id  # type: ignore[union-attr]


def test_every_screen_says_simulated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for words in (("search", "--simulate", "hoffmann2022", "--trials", "3"), ("promote",),
                  ("status",)):  # fmt: skip
        assert "data: SIMULATED world hoffmann2022" in command(*words)
    assert run_json("status")["backend"] == "simulated:hoffmann2022"
    write_report(Facts(read_study("budgetsweep.db")), tmp_path / "report", figures=())
    for name in ("report.md", "report.html"):
        text = (tmp_path / "report" / name).read_text(encoding="utf-8")
        assert "SIMULATED world hoffmann2022" in text
        assert "nothing trained" in text


def test_the_law_sampler_is_a_function_of_seed_and_results() -> None:
    settings = SearchSettings(backend=Simulated(DEFAULT_WORLD))
    space, limits = settings.resolved_space(), Limits(10**15)
    rng = np.random.default_rng(0)
    seen = [space.random_settings(rng) for _ in range(12)]

    def proposals(seed: int, sampler: SamplerName = "law") -> Proposals:
        problem = SearchProblem(space, limits, settings.base(), seed)
        return Proposals(None, "s", problem, sampler, False)

    def proposed(asked: Proposals, n: int) -> dict[str, Value]:
        """Proposal n, after n trials that have ended."""
        for number in range(len(asked), n):
            asked.restore(number, seen[number])
            asked.complete(number, 6.0 + 0.1 * number)
        return asked.propose().settings

    first = proposed(proposals(9), 12)
    assert first == proposed(proposals(9), 12)
    assert first != proposed(proposals(10), 12)
    assert first.keys() == seen[0].keys()
    assert first not in seen
    assert space.decode(space.encode(first)) == first
    asked_before = proposals(9)
    seen[5] = proposed(asked_before, 5)  # what was asked before makes no difference
    asked_before.complete(5, 6.5)
    assert proposed(asked_before, 12) == proposed(proposals(9), 12)
    assert proposed(proposals(9), 3) == proposed(proposals(9, "qmc"), 3)  # too few to go on


@pytest.mark.slow
def test_the_law_sampler_finds_what_random_search_does_not(tmp_path: Path) -> None:
    """24 trials each: the best true loss of `law` is lower than that of `random` by 0.03 nats."""
    found = {}
    for sampler in ("law", "random"):
        settings = simulated(
            tmp_path, sampler=sampler, study=sampler, trials=24, seed=5,
            overrides=("head_samples=1024",),  # else the first proposal has most of it
        )  # fmt: skip
        best = search(settings, Hooks()).best
        assert best is not None
        found[sampler] = WORLDS[DEFAULT_WORLD].true_loss(RunConfig.model_validate(best.config))
    assert found["law"] < found["random"] - 0.03


def test_finalists_are_trained_once_whatever_the_limit(tmp_path: Path) -> None:
    """A limit that pays for just these runs does not call them missing when all is done."""
    rungs = Rungs.parse("0.3,1,2")
    settings = simulated(tmp_path, trials=8, rungs=rungs)
    limit = int(rungs.budgets(8) * settings.budget_flops)
    settings = dataclasses.replace(settings, total_flops=limit)
    assert search(settings, Hooks()).finished
    again = search(settings, Hooks())
    assert (again.finished, again.reason) == (True, "all 8 trials are done")
    with Store.open(settings.storage) as store:
        (finalist,) = store.runs(store.study().id, kind="finalist")
    # Asked for as a promotion, the same run is found again.
    asked = promote(PromoteSettings(storage=settings.storage, scale=2.0), PromoteHooks())
    assert asked.run is not None
    assert (asked.run.id, asked.run.kind) == (finalist.id, "finalist")
