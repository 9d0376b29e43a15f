"""Searches, for real: stopped, killed, continued, refused - nothing lost, nothing twice."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import psutil
import pytest

from budgetsweep.errors import ConfigError, DataError, StudyError
from studies.database.store import Store
from studies.database.tables import Run
from studies.execution.dispatcher import recover
from studies.trackers.base import RunView
from tests.support.processes import ROOT
from tests.support.searches import (
    BUDGET,
    Recorder,
    read,
    run_search,
    settings_for,
    tiny_space,
    write_text,
)
from trainer.config import RunConfig
from trainer.events import Point

pytestmark = pytest.mark.slow  # searches that really train, in processes of their own

COMPARED = ("number", "params", "config_hash", "val_loss_nats", "step", "status", "num_steps")


def facts(runs: list[Run]) -> list[tuple[Any, ...]]:
    return [tuple(getattr(run, name) for name in COMPARED) for run in runs]


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished search of six trials."""
    folder = tmp_path_factory.mktemp("straight")
    outcome = run_search(settings_for(folder, trials=6))
    assert outcome.finished
    assert outcome.n_finished == 6
    return folder


def test_every_trial_is_complete_and_within_its_budget(straight: Path) -> None:
    settings = settings_for(straight)
    study, runs = read(settings)
    assert [run.status for run in runs] == ["complete"] * 6
    for run in runs:
        config = RunConfig.model_validate(run.config)
        per_step = config.flops_per_step("nanogpt")
        assert run.planned_flops_nanogpt == per_step * run.step <= BUDGET
        assert run.planned_flops_nanogpt + per_step > BUDGET  # and as near as a step allows
        assert run.val_loss_nats is not None
        assert 0.5 < run.val_loss_nats < 6.0
        assert run.val_checksum == study.val_checksum
        assert run.git_commit is None or len(run.git_commit) >= 7
        assert run.versions["torch"]
        assert run.peak_memory_bytes
    with Store.open(settings.storage) as store:
        ledger = store.ledger(study.id)
        assert ledger.spent == ledger.planned
        assert ledger.recomputed.steps == 0
        assert ledger.spent.nanogpt == sum(run.planned_flops_nanogpt for run in runs)
        points = store.points(runs[0].id)
    assert [p.step for p in points if p.val_loss_nats is not None][-1] == runs[0].num_steps
    assert points[-1].flops == runs[0].planned_flops_nanogpt
    assert points[-1].val_loss_nats == runs[0].val_loss_nats


def test_optuna_reads_the_same_database(straight: Path) -> None:
    settings = settings_for(straight)
    _, runs = read(settings)
    study = optuna.load_study(study_name="tiny", storage=f"sqlite:///{settings.storage}")
    told = {trial.number: trial.value for trial in study.trials if trial.value is not None}
    assert told == {run.number: run.val_loss_nats for run in runs}


def test_only_the_best_trials_weights_are_kept(straight: Path) -> None:
    _, runs = read(settings_for(straight))
    best = min(runs, key=lambda run: run.val_loss_nats or 9e9)
    kept = [run.number for run in runs if (Path(run.output_dir or "") / "model.pt").exists()]
    assert kept == [best.number]


def test_the_same_command_again_has_nothing_to_do(straight: Path) -> None:
    recorder = Recorder()
    outcome = run_search(settings_for(straight, trials=6), observer=recorder)
    assert outcome.finished
    assert outcome.reason == "all 6 trials are done"
    assert recorder.started == []


def test_another_budget_space_or_seed_is_another_study(straight: Path) -> None:
    for changes, words in (
        ({"budget_flops": 2 * BUDGET}, "another budget"),
        ({"seed": 5}, "another seed"),
        ({"sampler": "random"}, "another sampler"),
        ({"space": tiny_space(n_layer=1)}, "another search space"),
        ({"overrides": ("num_evals=3",)}, "another run settings"),
    ):
        with pytest.raises(StudyError, match=words):
            run_search(settings_for(straight, **changes))


class StopAt(Recorder):
    """Asks to stop once a run has passed some steps of its `n`-th trial."""

    def __init__(self, n: int, after_points: int) -> None:
        super().__init__()
        self.n, self.after_points, self.points = n, after_points, 0

    def run_point(self, run: RunView, point: Point) -> None:
        if len(self.started) >= self.n:
            self.points += 1

    def should_stop(self) -> bool:
        return self.points >= self.after_points


def test_stopped_and_continued_equals_uninterrupted(straight: Path, tmp_path: Path) -> None:
    settings = settings_for(straight, trials=6)
    _, expected = read(settings)
    # The same text in the same place, so that the configurations are equal; another database.
    again = dataclasses.replace(settings, storage=tmp_path / "again.db", runs_dir=tmp_path / "runs")
    outcomes = []
    for n, after in ((1, 1), (2, 2), (2, 1)):
        stop = StopAt(n, after)
        outcomes.append(run_search(again, observer=stop, should_stop=stop.should_stop))
    assert not outcomes[0].finished
    outcome = run_search(again)
    assert outcome.finished
    study, runs = read(again)
    assert facts(runs) == facts(expected)
    with Store.open(again.storage) as store, Store.open(settings.storage) as first:
        ledger = store.ledger(study.id)
        assert ledger.spent == ledger.planned  # interrupted after a checkpoint
        for run, other in zip(runs, expected, strict=True):
            got, wanted = (
                [(p.step, p.train_loss_nats, p.val_loss_nats) for p in points]
                for points in (store.points(run.id), first.points(other.id))
            )
            assert got == wanted


PROGRAM = """
import sys
from pathlib import Path
from tests.support.searches import run_search, settings_for
import dataclasses
if __name__ == "__main__":
    settings = settings_for(Path(sys.argv[1]), trials=6)
    run_search(dataclasses.replace(
        settings, storage=Path(sys.argv[2]) / "killed.db", runs_dir=Path(sys.argv[2]) / "runs",
    ))
"""


def start_process(straight: Path, tmp_path: Path) -> subprocess.Popen[bytes]:
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    return subprocess.Popen(
        [sys.executable, str(script), str(straight), str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def wait_for_trials(storage: Path, n: int, process: subprocess.Popen[bytes]) -> None:
    """Until `n` runs have been started."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert process.poll() is None, "the search ended before it could be killed"
        if storage.exists():
            try:
                with Store.open(storage) as store:
                    study = store.find_study("tiny")
                    if study is not None and len(store.runs(study.id)) >= n:
                        return
            except StudyError:  # not yet migrated
                pass
        time.sleep(0.02)
    raise AssertionError("the search made no progress")


def test_killed_at_any_moment_nothing_is_lost_or_run_twice(straight: Path, tmp_path: Path) -> None:
    settings = settings_for(straight, trials=6)
    storage = tmp_path / "killed.db"
    for n in (1, 3, 4):
        process = start_process(straight, tmp_path)
        wait_for_trials(storage, n, process)
        time.sleep(0.03 * n)
        process.send_signal(signal.SIGKILL)
        process.wait()
    process = start_process(straight, tmp_path)
    assert process.wait(120) == 0
    _, expected = read(settings)
    killed = dataclasses.replace(settings, storage=storage)
    study, runs = read(killed)
    assert facts(runs) == facts(expected)
    with Store.open(storage) as store:
        ledger = store.ledger(study.id)
        assert ledger.planned.steps == sum(run.num_steps for run in runs)
        assert ledger.spent.steps == sum(run.steps_executed for run in runs)
        assert ledger.spent.steps - ledger.recomputed.steps == ledger.planned.steps
    optuna_trials = optuna.load_study(study_name="tiny", storage=f"sqlite:///{storage}").trials
    assert [t.state.name for t in optuna_trials] == ["COMPLETE"] * len(runs)


def test_a_second_search_on_the_same_study_is_refused(straight: Path, tmp_path: Path) -> None:
    process = start_process(straight, tmp_path)
    try:
        wait_for_trials(tmp_path / "killed.db", 1, process)
        second = dataclasses.replace(
            settings_for(straight, trials=6), storage=tmp_path / "killed.db"
        )
        with pytest.raises(StudyError, match=str(process.pid)):
            run_search(second)
    finally:
        process.kill()
        process.wait()


def worker_processes() -> list[psutil.Process]:
    """Workers are children of our child, the fork server."""
    return [worker for server in psutil.Process().children() for worker in server.children()]


class WorkerKiller(Recorder):
    """Kills the worker process each time a point of the given trial comes, `times` times."""

    def __init__(self, number: int, times: int) -> None:
        super().__init__()
        self.number, self.times = number, times

    def run_started(self, run: RunView) -> None:
        super().run_started(run)
        if run.number == self.number and self.times > 0:
            self.times -= 1
            for worker in worker_processes():
                worker.kill()


@pytest.mark.parametrize(("times", "status"), [(1, "complete"), (9, "failed")])
def test_a_worker_that_dies_is_replaced_and_a_trial_that_kills_each_fails(
    tmp_path: Path, times: int, status: str
) -> None:
    recorder = WorkerKiller(1, times)
    settings = settings_for(tmp_path, trials=3)
    assert run_search(settings, observer=recorder).finished
    _, runs = read(settings)
    assert [run.status for run in runs] == ["complete", status, "complete"]
    if status == "complete":
        assert any("SIGKILL" in message for message in recorder.messages)
        assert runs[1].attempts == 2
    else:
        assert "SIGKILL" in (runs[1].reason or "")


def test_a_diverging_trial_fails_with_its_step_and_the_search_goes_on(tmp_path: Path) -> None:
    settings = settings_for(
        tmp_path, trials=3, space=tiny_space(max_lr={"values": [1e-2, 900.0]}, n_layer=1),
        overrides=("num_evals=2", "num_reports=4", "compile=off", "grad_clip=null"), sampler="qmc",
    )  # fmt: skip
    outcome = run_search(settings)
    assert outcome.finished
    assert outcome.n_finished == 3
    _, runs = read(settings)
    for run in runs:
        assert run.status in ("complete", "failed")
        if run.status == "failed":
            assert run.val_loss_nats is None
            assert "step" in (run.reason or "")


def test_a_folder_that_cannot_be_written_stops_the_search_and_loses_no_trial(
    straight: Path, tmp_path: Path
) -> None:
    settings = settings_for(tmp_path, trials=6)
    in_the_way = settings.folder / "trial-00002"
    settings.folder.mkdir(parents=True)
    in_the_way.write_text("not a folder")
    with pytest.raises(StudyError, match=r"trial 2: .*trial-00002") as raised:
        run_search(settings)
    assert "\n" not in str(raised.value)
    _, runs = read(settings)
    assert [run.status for run in runs] == ["complete", "complete", "interrupted"]
    in_the_way.unlink()
    assert run_search(settings).finished
    here, there = read(settings)[1], read(settings_for(straight))[1]
    assert [(r.number, r.status, r.params) for r in here] == [
        (r.number, r.status, r.params) for r in there
    ]
    assert [r.val_loss_nats for r in here] == [r.val_loss_nats for r in there]


def test_over_budget_proposals_are_rejected_and_cost_no_trial(tmp_path: Path) -> None:
    space = tiny_space(num_training_steps={"values": [20, 40, 3000, 4000]})
    settings = settings_for(tmp_path, space=space, sampler="random", trials=3)
    recorder = Recorder()
    outcome = run_search(settings, observer=recorder)
    study, runs = read(settings)
    assert outcome.n_finished == 3
    assert outcome.n_rejected == recorder.n_rejected > 0
    assert all(run.planned_flops_nanogpt <= BUDGET for run in runs)
    with Store.open(settings.storage) as store:
        rejections = store.rejections(study.id)
    assert {r.reason for r in rejections} <= {"over_budget", "duplicate"}
    over = [r for r in rejections if r.reason == "over_budget"]
    assert over
    assert all((r.excess or 0) > 1 and (r.charge_flops or 0) > BUDGET for r in over)
    numbers = sorted([run.number for run in runs] + [r.number for r in rejections])
    assert numbers == list(range(len(numbers)))  # one sequence of proposals, none forgotten


def test_nothing_is_tried_twice_and_a_small_space_ends_the_search(tmp_path: Path) -> None:
    space = tiny_space(n_embd=[8, 16], n_layer=1, seq_len=16, batch_size=4, max_lr=[1e-3, 1e-2])
    settings = settings_for(tmp_path, space=space, sampler="random", trials=20)
    outcome = run_search(settings)
    _, runs = read(settings)
    assert len(runs) == 4
    assert len({run.config_hash for run in runs}) == 4
    assert outcome.reason == "every configuration of the space has been tried"


def test_total_flops_is_never_passed(tmp_path: Path) -> None:
    settings = settings_for(tmp_path, trials=9, total_flops=int(2.5 * BUDGET))
    outcome = run_search(settings)
    study, runs = read(settings)
    assert outcome.reason.startswith("--total-flops")
    assert len(runs) == 2
    with Store.open(settings.storage) as store:
        assert store.ledger(study.id).spent.nanogpt <= 2.5 * BUDGET
    more = run_search(dataclasses.replace(settings, total_flops=int(3.5 * BUDGET)))
    assert more.n_finished == 3


def test_hours_stop_a_session_and_the_next_goes_on(tmp_path: Path) -> None:
    settings = settings_for(tmp_path, trials=3, hours=1e-9)
    outcome = run_search(settings)
    assert not outcome.finished
    assert outcome.n_finished == 0
    assert "--hours" in outcome.reason
    assert run_search(dataclasses.replace(settings, hours=None)).n_finished == 3


def test_two_workers_share_the_work_and_find_the_losses_of_one(tmp_path: Path) -> None:
    settings = settings_for(tmp_path, trials=6, workers=2, sampler="random")
    recorder = Recorder()
    outcome = run_search(settings, observer=recorder)
    study, runs = read(settings)
    assert outcome.n_finished == 6
    assert sorted(number for number, _ in recorder.ended) == [run.number for run in runs]
    with Store.open(settings.storage) as store:
        ledger = store.ledger(study.id)
        assert ledger.spent == ledger.planned
    alone = dataclasses.replace(settings, study="alone", workers=1)
    assert run_search(alone).n_finished == 6
    # Results come in another order, what is proposed and found for a number is the same.
    assert sorted(facts(read(alone)[1])) == sorted(facts(runs))


def test_pruning_stops_bad_trials_at_equal_shares(tmp_path: Path) -> None:
    space = tiny_space(max_lr={"values": [1e-6, 2e-6, 1e-2, 1.5e-2]}, n_layer=1)
    settings = settings_for(
        tmp_path, space=space, sampler="random", trials=14, pruning=True,
        overrides=("num_evals=4", "num_reports=4", "compile=off"),
    )  # fmt: skip
    run_search(settings)
    _, runs = read(settings)
    pruned = [run for run in runs if run.status == "pruned"]
    assert any(run.params["max_lr"] < 1e-5 for run in pruned)
    for run in pruned:
        assert run.step < run.num_steps
        assert run.step in {round(k * run.num_steps / 4) for k in (1, 2, 3)}
    best = min((r for r in runs if r.status == "complete"), key=lambda r: r.val_loss_nats or 9e9)
    assert best.params["max_lr"] > 1e-3


def test_changed_text_is_noticed_before_anything_is_trained(tmp_path: Path) -> None:
    settings = settings_for(tmp_path, trials=2)
    run_search(settings)
    path = write_text(tmp_path)
    path.write_text(path.read_text().replace("a", "b"))
    with pytest.raises((DataError, StudyError), match="not those of study"):
        run_search(dataclasses.replace(settings, trials=3))


def test_a_space_in_which_nothing_fits_is_refused_before_anything_is_written(
    tmp_path: Path,
) -> None:
    settings = settings_for(tmp_path, space=tiny_space(num_training_steps=10**9))
    with pytest.raises(ConfigError, match="none of 256 random proposals is admitted"):
        run_search(settings)
    assert not (tmp_path / "study.db").exists()


def test_a_deleted_run_folder_keeps_the_ledger_exact(tmp_path: Path) -> None:
    settings = settings_for(tmp_path, trials=2, overrides=("checkpoint_seconds=0", "num_evals=2"))
    stop = StopAt(1, 1)
    run_search(settings, observer=stop, should_stop=stop.should_stop)
    study, runs = read(settings)
    assert runs[0].status == "interrupted"
    done = runs[0].steps_executed
    for path in Path(runs[0].output_dir or "").iterdir():
        path.unlink()
    assert run_search(settings).finished
    _, runs = read(settings)
    assert runs[0].status == "complete"
    assert runs[0].steps_executed == done + runs[0].num_steps
    with Store.open(settings.storage) as store:
        assert store.ledger(study.id).recomputed.steps == done
        with settings.backend.executor(settings.asked_workers) as executor:
            assert recover(store, study, executor) == []


@pytest.fixture(autouse=True)
def _no_process_left_behind() -> Iterator[None]:
    yield
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if not worker_processes():
            return
        time.sleep(0.1)
    raise AssertionError(f"worker processes left behind: {worker_processes()}")
