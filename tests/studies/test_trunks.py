"""Trunks with cooldown branches: several budgets from one run, each step paid once."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from budgetsweep.config import parse
from budgetsweep.constraint import Limits
from budgetsweep.errors import ConfigError, StudyError
from studies.database.store import Store
from studies.database.tables import Run, Study
from studies.prior_studies import Earlier
from studies.samplers.objective import Objective
from studies.search import Hooks, search
from studies.settings import SearchSettings
from studies.simulation.worlds import DEFAULT_WORLD, WORLDS
from studies.space.rungs import Rungs
from studies.space.search_space import space_from_dict
from studies.trackers.base import RunView
from studies.trials import reconcile
from studies.trunks import Branches
from tests.studies.test_search import wait_for_trials
from tests.support.searches import BUDGET, PARAMETERS, Recorder, run_search, settings_for
from tests.support.tiny_runs import drive
from tests.trainer.test_branches import trunk_config
from trainer.branches import WHOLE, branch_start, kept_files
from trainer.checkpoints import checkpoint
from trainer.config import RunConfig
from trainer.data.prepare import open_prepared
from trainer.events import RunResult

TRUNKS = Rungs.parse("0.1,0.3,1", "0.2")


def simulated(folder: Path, **changes: Any) -> SearchSettings:
    """A simulated search of six trunks at 1e15."""
    values = {
        "storage": folder / "s.db", "simulate": DEFAULT_WORLD, "sampler": "qmc", "trials": 6,
        "rungs": TRUNKS,
    }  # fmt: skip
    return SearchSettings(**{**values, **changes})


def runs_of(settings: SearchSettings) -> dict[str, list[Run]]:
    """The study's runs by kind."""
    with Store.open(settings.storage) as store:
        study = store.study(settings.study_name)
        return {kind: store.runs(study.id, kind=kind) for kind in ("trial", "branch", "promotion")}


def outcomes(settings: SearchSettings) -> list[tuple[Any, ...]]:
    """What must not depend on interruptions."""
    return [
        (r.kind, r.number, r.scale, r.parent_run_id is None, r.config_hash, r.status,
         r.val_loss_nats, r.step, r.inherited_steps)
        for runs in runs_of(settings).values() for r in runs
    ]  # fmt: skip


# ── the plan ─────────────────────────────────────────────────────────────────────────────────


@given(st.integers(1, 200), st.fractions(Fraction(1, 100), Fraction(99, 100)))
def test_trunks_cost_their_cooldowns_more(n_trials: int, cooldown: Fraction) -> None:
    rungs = Rungs.parse("0.1,0.3,1,2", str(cooldown))
    assert rungs.of_trials == (1,)
    assert rungs.of_branches == (Fraction("0.1"), Fraction("0.3"))
    above = rungs.finalists(Fraction(2), n_trials) * 2
    assert rungs.budgets(n_trials) == n_trials * (1 + cooldown * Fraction("0.4")) + above
    assert Rungs.of_study({"rungs": str(rungs), "trunks": rungs.cooldown_text}) == rungs


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rungs": ("1", "0.2")}, "--trunks: branches are the rungs below 1"),
        ({"rungs": ("1,3", "0.2")}, "--trunks: branches are the rungs below 1"),
        ({"rungs": ("0.1,1", "1")}, "--trunks 1: expected the cooldown's share"),
        ({"rungs": ("0.1,1", "-1")}, "--trunks -1: expected"),
        ({"rungs": ("0.1,1", "fifth")}, "--trunks 'fifth': expected"),
        ({"pruning": True}, "--prune compares"),
        ({"overrides": ("schedule=cosine",)}, "--trunks: every run has schedule wsd"),
        ({"overrides": ("cooldown_fraction=0.5",)}, r"cooldown_fraction 0\.2; .*--trunks 0\.3"),
        ({"space": {"schedule": {"values": ["wsd", "cosine"]}}}, "has schedule wsd"),
        ({"space": {"schedule": {"value": "linear"}}}, "has schedule wsd"),
        ({"space": {"cooldown_fraction": {"min": 0.1, "max": 0.3}}}, "has cooldown_fraction 0.2"),
    ],
)
def test_what_speaks_against_trunks_is_refused_in_one_line(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    def command() -> None:
        wanted = dict(changes)
        if "rungs" in wanted:
            wanted["rungs"] = Rungs.parse(*wanted["rungs"])
        if "space" in wanted:
            space = {"parameters": {**PARAMETERS, **wanted["space"]}}
            wanted["space"] = space_from_dict(space, "space")
        search(simulated(tmp_path, **wanted), Hooks())

    with pytest.raises(ConfigError, match=message) as refused:
        command()
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "s.db").exists()


def test_what_agrees_with_trunks_is_not_refused(tmp_path: Path) -> None:
    settings = simulated(tmp_path, overrides=("schedule=wsd", "cooldown_fraction=0.2"))
    space = settings.resolved_space()
    warmup = space.parameters["warmup_fraction"]
    assert (warmup.min, warmup.max) == (0.01, 0.05)  # half of the shortest branch
    told = space_from_dict({"parameters": {**PARAMETERS, "schedule": {"value": "wsd"}}}, "space")
    assert simulated(tmp_path, space=told).resolved_space().parameters["schedule"].value == "wsd"
    assert SearchSettings().resolved_space().parameters["warmup_fraction"].max == 0.1


# ── real searches ────────────────────────────────────────────────────────────────────────────


PROGRAM = """
import sys
from pathlib import Path
from tests.support.searches import run_search
from tests.studies.test_trunks import tiny
if __name__ == "__main__":
    run_search(tiny(Path(sys.argv[1])))
"""


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a search of two trunks: SIGKILL in its first branch, then the same again."""
    root, folder = Path(__file__).parents[2], tmp_path_factory.mktemp("killed")
    settings = tiny(folder)
    (folder / "program.py").write_text(PROGRAM)
    with subprocess.Popen(
        [sys.executable, str(folder / "program.py"), str(folder)], cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
    ) as process:  # fmt: skip
        wait_for_trials(folder / "study.db", 2, process)
        process.send_signal(signal.SIGKILL)
    assert [run.number for run in runs_of(settings)["branch"]] == [0]
    assert run_search(settings).finished
    return folder


def tiny(folder: Path, **changes: Any) -> SearchSettings:
    """Trunks of 50 steps and more, with warm-up."""
    overrides = ("num_evals=2", "num_reports=4", "compile=off", "num_warmup_steps=2")
    return settings_for(folder, trials=2, rungs=TRUNKS, overrides=overrides, **changes)


@pytest.mark.slow
def test_branches_reach_what_runs_from_scratch_would_for_their_cooldowns_alone(
    killed: Path, tmp_path: Path
) -> None:
    """Killed or not, and every step is on the ledger once."""
    settings = tiny(killed)
    runs = runs_of(settings)
    assert len(runs["trial"]) == 2
    assert [run.scale for run in runs["branch"]] == [0.1, 0.3] * 2
    trunks = {run.id: run for run in runs["trial"]}
    for run in runs["branch"]:
        config = parse(RunConfig, run.config, "branch")
        trunk = parse(RunConfig, trunks[run.parent_run_id or 0].config, "trial")
        assert run.status == "complete"
        assert run.inherited_steps == branch_start(config)
        assert run.steps_executed - run.steps_redone == run.num_steps - run.inherited_steps
        assert run.num_steps == int(Fraction(str(run.scale)) * trunk.steps)
        assert config.with_changes(
            num_training_steps=trunk.steps, budget_flops=trunk.budget_flops,
            output_dir=trunk.output_dir,
        ) == trunk  # fmt: skip
        assert run.planned_flops_nanogpt <= run.budget_flops == BUDGET * Fraction(str(run.scale))
    data = open_prepared(config.data, "bytes", killed / "cache")
    for run in runs["branch"][:2]:
        config = parse(RunConfig, run.config, "branch")
        result, _ = drive(config, data, tmp_path / str(run.number))
        assert result.val_loss_nats == run.val_loss_nats
    with Store.open(settings.storage) as store:
        study = store.study()
        ledger = store.ledger(study.id)
        best = store.best_run(study.id)
        curves = store.curves(study.id)
    own = sum(r.num_steps - r.inherited_steps for r in [*runs["trial"], *runs["branch"]])
    assert ledger.planned.steps == ledger.spent.steps - ledger.redone.steps == own
    rounding = sum(r.planned_flops_nanogpt / r.num_steps for r in runs["branch"])
    assert ledger.planned.nanogpt <= TRUNKS.budgets(2) * BUDGET + rounding / 2
    assert best is not None
    assert best.kind == "trial"
    for run in runs["branch"][1:]:  # the worker of the first may have ended it with nobody there
        assert min(curves[run.id].step) >= run.inherited_steps
    for run in runs["trial"]:
        assert not kept_files(Path(str(run.output_dir)))


@pytest.mark.slow
def test_the_fit_says_what_its_points_are(killed: Path) -> None:
    with Store.open(tiny(killed).storage) as store:
        study = store.study()
        fit = store.newest_fit(study.id)
        kinds = {run.id: run.kind for run in store.runs(study.id)}
    assert fit is not None
    assert len(fit.record["points"]) == 6
    names = {"trial": "end of a decayed schedule", "branch": "cooldown branch"}
    assert all(point["point"] == names[kinds[point["run_id"]]] for point in fit.record["points"])


@pytest.mark.slow
def test_the_same_command_again_trains_nothing(killed: Path) -> None:
    again = Recorder()
    assert run_search(tiny(killed), observer=again).finished
    assert again.started == []
    other = dataclasses.replace(tiny(killed), rungs=Rungs.parse("0.1,0.3,1", "0.3"))
    with pytest.raises(StudyError, match="another cooldown of trunks"):
        run_search(other)


@dataclasses.dataclass
class Trunk:
    """A complete trial of 100 steps in a store, its checkpoints kept, and what comes of it."""

    store: Store
    settings: SearchSettings
    trial: Run
    recorder: Recorder

    def branches(self, total_flops: int | None = None) -> Branches:
        """The branches, as a search finds them when it begins."""
        settings = dataclasses.replace(self.settings, total_flops=total_flops)
        limits = Limits(self.trial.budget_flops)
        return Branches(self.store, self.store.study(), settings, limits, self.recorder)

    @property
    def kept(self) -> list[str]:
        """Names of the checkpoints."""
        return [path.name for path in kept_files(Path(str(self.trial.output_dir)))]

    def finish(self, run: Run) -> Run:
        """The run computes all its own steps."""
        own = run.num_steps - run.inherited_steps
        self.store.start_attempt(run.id)
        self.store.finish_run(
            run.id, RunResult("complete", run.num_steps, own, 0, val_loss_nats=2.0)
        )
        return self.store.run(run.id)


@pytest.fixture
def trunk(tmp_path: Path) -> Iterator[Trunk]:
    settings = tiny(tmp_path)
    config = trunk_config(num_training_steps=100, data={"source": "text.txt"})
    budget = 100 * config.flops_per_step("nanogpt")
    folder = tmp_path / "trial"
    folder.mkdir()
    with Store.open(settings.storage, create=True) as store:
        study = store.create_study(
            name="tiny", budget_flops=budget, convention="nanogpt", sampler="qmc", seed=0,
            space={}, settings={},
        )  # fmt: skip
        run_id = store.add_run(
            study_id=study.id, kind="trial", number=7, params={"a": 1}, config=config,
            budget_flops=budget, data_checksum="d", val_checksum="v", epochs=None,
            estimated_memory_bytes=None, output_dir=str(folder), scale=1.0,
        )  # fmt: skip
        made = Trunk(store, settings, store.run(run_id), Recorder())
        assert made.branches().lineage(made.trial).kept_steps == {8, 24}
        assert not made.branches().is_waiting
        for step in (8, 24):
            checkpoint.keep(folder, {"step": step}, config)
        made.trial = made.finish(made.trial)
        yield made


def test_branches_are_entered_once_and_the_checkpoints_go_with_the_last(trunk: Trunk) -> None:
    first = trunk.branches().next_run()
    assert first is not None
    again = trunk.branches()  # the first is entered: only the second is left
    second = again.next_run()
    assert second is not None
    assert not again.is_waiting
    assert [(r.number, r.scale, r.num_steps, r.inherited_steps) for r in (first, second)] == [
        (0, 0.1, 10, 8), (1, 0.3, 30, 24),
    ]  # fmt: skip
    assert [r.parent_run_id for r in (first, second)] == [trunk.trial.id] * 2
    begins = again.lineage(second).begins_from
    assert begins is not None
    assert begins.name == trunk.kept[1] == "branch-00000024.pt"
    again.finished(trunk.finish(second))
    assert len(trunk.kept) == 2
    trunk.finish(first)  # and the process is gone before it tidies up
    assert len(trunk.kept) == 2
    assert not trunk.branches().is_waiting
    assert trunk.kept == []
    assert trunk.recorder.messages == []
    ledger = trunk.store.ledger(trunk.trial.study_id)
    assert ledger.spent == ledger.planned
    assert ledger.spent.steps == 100 + 2 + 6


def test_a_branch_without_its_checkpoint_is_trained_from_scratch_where_that_is_paid(
    trunk: Trunk,
) -> None:
    first, second = kept_files(Path(str(trunk.trial.output_dir)))
    first.unlink()
    second.write_bytes(second.read_bytes()[:-1])
    step = trunk.trial.budget_flops // 100
    limited = trunk.branches(total_flops=(100 + 10 + 29) * step)
    run = limited.next_run()
    assert run is not None
    assert (run.inherited_steps, run.num_steps, run.planned_flops_nanogpt) == (0, 10, 10 * step)
    assert limited.lineage(run) == WHOLE
    assert limited.next_run() is None
    assert not limited.is_waiting
    assert "trial 7: the branch at 0.3 times the budget would cost" in str(limited.refusal)
    trunk.finish(run)
    paid = trunk.branches(total_flops=(100 + 10 + 30) * step)
    run = paid.next_run()
    assert run is not None
    assert (run.inherited_steps, run.num_steps, paid.refusal) == (0, 30, None)
    lost = "has lost the checkpoint to begin from; it is trained from scratch"
    assert trunk.recorder.messages[-1] == f"trial 7: the branch at 0.3 times the budget {lost}"
    paid.finished(trunk.finish(run))
    assert trunk.kept == []


@pytest.mark.parametrize(("steps", "entered"), [(107, 1), (108, 2)])
def test_branches_are_paid_for_their_cooldowns(trunk: Trunk, steps: int, entered: int) -> None:
    branches = trunk.branches(total_flops=steps * (trunk.trial.budget_flops // 100))
    assert branches.reserved_flops == 8 * (trunk.trial.budget_flops // 100)
    assert len([run for _ in range(2) if (run := branches.next_run())]) == entered
    assert len(trunk.kept) == 2  # for a larger limit


# ── simulated searches ───────────────────────────────────────────────────────────────────────


class Crash(Recorder):
    """Ends the process, as far as a test can, at a run that begins or has ended."""

    def __init__(self, kind: str, number: int, when: str) -> None:
        super().__init__()
        self.at = (kind, number, when)

    def run_started(self, run: RunView) -> None:
        if self.at == (run.kind, run.number, "started"):
            raise KeyboardInterrupt

    def run_ended(self, run: RunView, result: RunResult, best_val_loss_nats: float | None) -> None:
        if self.at == (run.kind, run.number, "ended"):
            raise KeyboardInterrupt


def test_a_search_goes_on_as_if_it_had_never_stopped(tmp_path: Path) -> None:
    for name in ("straight", "crashed"):
        (tmp_path / name).mkdir()
    whole = simulated(tmp_path / "straight", sampler="law")
    assert search(whole, Hooks()).finished
    crashed = simulated(tmp_path / "crashed", sampler="law")
    for at in (("trial", 1, "ended"), ("branch", 2, "started"), ("branch", 5, "ended"),
               ("trial", 4, "started"), ("branch", 9, "ended"), ("trial", 5, "ended")):  # fmt: skip
        with pytest.raises(KeyboardInterrupt):
            search(crashed, Hooks(observer=Crash(*at)))
    assert search(crashed, Hooks()).finished
    assert outcomes(crashed) == outcomes(whole)
    with Store.open(crashed.storage) as store:
        ledger = store.ledger(store.study().id)
    assert ledger.spent.nanogpt == ledger.planned.nanogpt  # lost runs had computed nothing yet


def test_branches_of_a_world_measure_its_law_and_several_workers_find_the_same(
    tmp_path: Path,
) -> None:
    found = []
    for workers in (1, 3):
        folder = tmp_path / str(workers)
        folder.mkdir()
        settings = simulated(folder, workers=workers)
        assert search(settings, Hooks()).finished
        runs = runs_of(settings)
        assert len(runs["branch"]) == 12
        for run in runs["branch"]:
            config = parse(RunConfig, run.config, "branch")
            assert run.val_loss_nats == WORLDS[DEFAULT_WORLD].measured_loss(config)
        found.append({(r.params["max_lr"], r.scale, r.val_loss_nats) for r in runs["branch"]})
    assert found[0] == found[1]


def test_a_failed_trunk_has_no_branch_and_a_long_warm_up_none_that_it_reaches(
    tmp_path: Path,
) -> None:
    rates = {"values": [1e-2, 10.0]}  # the second diverges in any world
    space = simulated(tmp_path).resolved_space().to_dict()
    space["parameters"] |= {"max_lr": rates, "warmup_fraction": {"value": 0.2}}
    recorder = Recorder()
    settings = simulated(tmp_path, space=space_from_dict(space, "space"), sampler="random")
    search(settings, Hooks(observer=recorder))
    runs = runs_of(settings)
    ended = {run.id: run.status for run in runs["trial"]}
    assert set(ended.values()) == {"complete", "failed"}
    assert [run.parent_run_id for run in runs["branch"]] == [
        run_id for run_id, status in ended.items() if status == "complete"
    ]
    assert {run.scale for run in runs["branch"]} == {0.3}
    _, *messages = recorder.messages  # the first names the data
    assert len(messages) == 6
    assert "trial 0 has no branch at 0.1 times the budget: " in messages[0]
    again = Recorder()
    search(settings, Hooks(observer=again))
    assert len(again.messages) == 1


@pytest.mark.parametrize(("budgets", "workers"), [(1.09, 1), (2.1, 2), (3.3, 1)])
def test_a_limit_pays_trunks_with_their_branches(
    tmp_path: Path, budgets: float, workers: int
) -> None:
    limit = int(budgets * 10**15)
    settings = simulated(tmp_path, total_flops=limit, workers=workers)
    outcome = search(settings, Hooks())
    assert "--total-flops" in outcome.reason
    runs = runs_of(settings)
    assert len(runs["trial"]) == int(budgets / 1.08)
    assert len(runs["branch"]) == 2 * len(runs["trial"])
    with Store.open(settings.storage) as store:
        assert store.ledger(store.study().id).spent.nanogpt <= limit


def test_what_samplers_are_told_of_a_larger_budget_rests_on_branches_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the search runs as after it: then all is read from the database."""
    used: list[Objective] = []

    class Kept(Objective):
        def __init__(self, study: Study, runs: Iterable[Run], earlier: Earlier) -> None:
            super().__init__(study, runs, earlier)
            used.append(self)

    monkeypatch.setattr("studies.search.Objective", Kept)
    settings = simulated(tmp_path, sampler="tpe", for_scale=100.0)
    search(settings, Hooks())
    runs = runs_of(settings)
    with Store.open(settings.storage) as store:
        study = store.study()
    last = runs["trial"][-1]
    told = used[0].value(last)
    assert told is not None
    assert told == Objective(study, [*runs["trial"], *runs["branch"]]).value(last)
    assert told != Objective(study, runs["trial"]).value(last)


def test_finalists_come_after_branches_and_a_limit_counts_all(tmp_path: Path) -> None:
    rungs = Rungs.parse("0.1,0.3,1,2", "0.2")
    settings = simulated(tmp_path, rungs=rungs, trials=8, sampler="law")
    limit = int(rungs.budgets(8) * settings.budget_flops)
    short = dataclasses.replace(settings, total_flops=limit - 2 * 10**14)
    assert "a finalist at 2 times the budget would cost" in search(short, Hooks()).reason
    assert search(dataclasses.replace(settings, total_flops=limit), Hooks()).finished
    (finalist,) = runs_of(settings)["promotion"]
    assert (finalist.scale, finalist.status) == (2.0, "complete")


def test_a_refused_proposal_had_the_whole_budget_too(tmp_path: Path) -> None:
    """After an interruption as before it: no trial of trunks is on a rung below."""
    settings = simulated(tmp_path, trials=2)
    search(settings, Hooks())

    budgets: dict[int, int | None] = {}

    class Told:
        def restore(self, number: int, params: object) -> None:
            """Nothing to keep."""

        def has_budget(self, number: int, budget_flops: int | None) -> None:
            budgets[number] = budget_flops

        def open_proposals(self) -> list[object]:
            return []

    with Store.open(settings.storage) as store:
        study = store.study()
        number = 1 + max(run.number for run in store.runs(study.id, kind="trial"))
        store.add_rejection(
            study_id=study.id, number=number, reason="over_budget", detail="", excess=None,
            params={}, n_params=None, tokens=None, charge_flops=None,
        )  # fmt: skip
        reconcile(store, study, Told(), Objective(study, ()))  # type: ignore[arg-type]
    assert set(budgets.values()) == {settings.budget_flops}
    assert number in budgets
