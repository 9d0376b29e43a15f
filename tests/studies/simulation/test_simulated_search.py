"""Searches whose runs are simulated: the whole product but the training."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from budgetsweep.cli.main import cli
from budgetsweep.constraint import Limits
from budgetsweep.errors import ConfigError, StudyError
from reports.build import write_report
from reports.facts import Facts
from reports.read import read_study
from studies.database.run_kind import RunKind
from studies.database.store import Store
from studies.database.tables import Run
from studies.execution.observer import Observer, RunView
from studies.promotion.promote import PromoteHooks, PromoteSettings, promote
from studies.samplers.law import LawSampler, Result
from studies.search import Hooks, search
from studies.settings import SearchSettings
from studies.simulation.worlds import DEFAULT_WORLD, WORLDS
from studies.space.rungs import Rungs
from trainer.events import RunResult


def settings_for(folder: Path, **changes: Any) -> SearchSettings:
    """A simulated search at 1e15 in `folder`."""
    values = {"storage": folder / "s.db", "simulate": DEFAULT_WORLD, "sampler": "qmc", "trials": 8}
    return SearchSettings(**{**values, **changes})  # type: ignore[arg-type]


def trials(settings: SearchSettings) -> list[Run]:
    """The study's trials."""
    with Store.open(settings.storage) as store:
        return store.runs(store.study(settings.study_name).id, kind="trial")


def outcomes(settings: SearchSettings) -> list[tuple[Any, ...]]:
    """What must not depend on interruptions."""
    return [(r.number, r.params, r.status, r.val_loss_nats, r.step) for r in trials(settings)]


class Crash(Observer):
    """Ends the process, as far as a test can, when the third trial has ended or begun."""

    def __init__(self, when: str) -> None:
        self.when = when

    def run_started(self, run: RunView) -> None:
        if self.when == "started" and run.number == 3:
            raise KeyboardInterrupt

    def run_ended(self, run: RunView, result: RunResult, best_val_loss_nats: float | None) -> None:
        if self.when == "ended" and run.number == 3:
            raise KeyboardInterrupt


@pytest.mark.parametrize("sampler", ["qmc", "tpe", "law"])
def test_a_search_goes_on_as_if_it_had_never_stopped(tmp_path: Path, sampler: str) -> None:
    for name in ("straight", "crashed"):
        (tmp_path / name).mkdir()
    straight = settings_for(tmp_path / "straight", sampler=sampler)
    assert search(straight, Hooks()).n_finished == 8
    crashed = settings_for(tmp_path / "crashed", sampler=sampler)
    for when in ("started", "ended"):
        with pytest.raises(KeyboardInterrupt):
            search(crashed, Hooks(observer=Crash(when)))
    assert search(crashed, Hooks()).n_finished == 8
    assert outcomes(crashed) == outcomes(straight)
    with Store.open(crashed.storage) as store:
        ledger = store.ledger(store.study(None).id)
    assert ledger.spent.nanogpt == ledger.planned.nanogpt  # lost runs had computed nothing yet


def test_losses_are_those_of_the_world(tmp_path: Path) -> None:
    from trainer.config import RunConfig

    settings = settings_for(tmp_path)
    search(settings, Hooks())
    for run in trials(settings):
        config = RunConfig.model_validate(run.config)
        assert run.val_loss_nats == WORLDS[DEFAULT_WORLD].measured_loss(config)
        assert run.planned_flops("nanogpt") <= 10**15
        assert (run.device_name, run.train_seconds) == ("simulated", 0.0)
    assert not settings.folder.exists()


def test_workers_and_pruning(tmp_path: Path) -> None:
    settings = settings_for(tmp_path, workers=3, pruning=True, trials=20)
    assert search(settings, Hooks()).n_finished == 20
    statuses = [run.status for run in trials(settings)]
    assert {"pruned", "complete"} <= set(statuses)


def test_a_simulated_study_is_never_mixed(tmp_path: Path) -> None:
    settings = settings_for(tmp_path, trials=1, study="s")
    search(settings, Hooks())
    for other in (None, "hoffmann2022"):
        with pytest.raises(StudyError, match="another simulated world or table"):
            search(settings_for(tmp_path, simulate=other, study="s"), Hooks())
    with pytest.raises(ConfigError, match="--simulate WORLD"):
        settings_for(tmp_path, overrides=("trainer=torch",))
    with pytest.raises(ConfigError, match="of decoders"):
        settings_for(tmp_path, overrides=("architecture=encoder",)).resolved_space()


def test_a_promotion_is_simulated_too(tmp_path: Path) -> None:
    settings = settings_for(tmp_path)
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
    with pytest.raises(ConfigError, match="simulated or not"):
        promote(
            PromoteSettings(storage=settings.storage, overrides=("world=hoffmann2022",)),
            PromoteHooks(),
        )


def test_every_screen_says_simulated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def run(*words: str, code: int = 0) -> str:
        done = CliRunner().invoke(cli, list(words))
        assert done.exit_code == code, done.output
        return done.output

    assert "SIMULATED (world hoffmann2022)" in run(
        "search", "--simulate", "hoffmann2022", "--trials", "3"
    )
    for words in (("promote",), ("status",), ("diagnose", "--trial", "1"), ("export",)):
        assert "SIMULATED (world hoffmann2022)" in run(*words)
    assert "SIMULATED" in run("train", "export/best.yaml")
    assert json.loads(run("status", "--json"))["simulated"] == "hoffmann2022"
    write_report(Facts(read_study("budgetsweep.db")), tmp_path / "report", figures=())
    for name in ("report.md", "report.html"):
        text = (tmp_path / "report" / name).read_text(encoding="utf-8")
        assert "Study simulated-hoffmann2022-1e15 (SIMULATED)" in text
        assert "nothing was trained" in text


def test_the_law_sampler_is_a_function_of_seed_and_results() -> None:
    settings = SearchSettings(simulate=DEFAULT_WORLD)
    space, base = settings.resolved_space(), settings.base()
    import numpy as np

    rng = np.random.default_rng(0)
    seen = [space.random_settings(rng) for _ in range(12)]
    results = [Result(i, s, 6.0 + 0.1 * i) for i, s in enumerate(seen)]
    one, two = (LawSampler(space, base, Limits(10**15)) for _ in range(2))
    two.propose(3, 5, results[:5], seen[:5])  # what was asked before makes no difference
    first = one.propose(9, 12, results, seen)
    assert first is not None
    assert first == two.propose(9, 12, results, seen)
    assert first != one.propose(10, 12, results, seen)
    assert first.keys() == seen[0].keys()
    assert first not in seen
    assert space.decode(space.encode(first)) == first
    assert one.propose(9, 3, results[:3], seen[:3]) is None


def test_the_law_sampler_finds_what_random_search_does_not(tmp_path: Path) -> None:
    """24 trials each: the best true loss of `law` is lower than that of `random` by 0.03 nats."""
    from trainer.config import RunConfig

    found = {}
    for sampler in ("law", "random"):
        settings = settings_for(
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
    settings = settings_for(tmp_path, trials=8, rungs=rungs)
    limit = int(rungs.budgets(8) * settings.budget_flops)
    settings = dataclasses.replace(settings, total_flops=limit)
    assert search(settings, Hooks()).finished
    again = search(settings, Hooks())
    assert (again.finished, again.reason) == (True, "all 8 trials are done")
    with Store.open(settings.storage) as store:
        assert len(store.runs(store.study().id, kind=RunKind.FINALIST)) == 1
