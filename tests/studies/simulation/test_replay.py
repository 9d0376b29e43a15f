"""Searches over a table of finished runs: every loss is that of a row, and nothing in between."""

from __future__ import annotations

import csv
import json
import math
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from budgetsweep.config import parse
from budgetsweep.errors import ConfigError, DataError, StudyError
from reports.build import write_report
from reports.facts import Facts
from reports.figures import runs as runs
from reports.read import read_study
from studies.database.store import Store
from studies.database.tables import Run
from studies.promotion.promote import PromoteHooks, PromoteSettings, promote
from studies.scaling.fitted_runs import FittedRuns
from studies.scaling.prediction import fit_study
from studies.scaling.study_fit import fit_runs, points_of
from studies.search import Hooks, search
from studies.settings import SearchSettings
from studies.simulation.regret import regrets
from studies.simulation.replay import Replay
from studies.space.rungs import Rungs
from tests.support.commands import run as command
from tests.support.searches import Crash, trials
from trainer.config import RunConfig

TABLE = Path(__file__).parents[3] / "examples" / "isoflop.csv"
BUDGETS = {10**15: 6, 3 * 10**15: 6, 10**16: 6, 10**17: 7}
"""Runs of the table at each budget."""


def settings_for(folder: Path, **changes: Any) -> SearchSettings:
    """A replayed search at 1e16 on three rungs."""
    values = {
        "storage": folder / "s.db", "backend": Replay(TABLE), "budget_flops": 10**16,
        "rungs": Rungs.parse("0.1,0.3,1"), "trials": 9, "study": "s",
    }  # fmt: skip
    return SearchSettings(**{**values, **changes})


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a search with 18 trials: all runs of its three budgets."""
    folder = tmp_path_factory.mktemp("searched")
    assert search(settings_for(folder, trials=18), Hooks()).reason == "all 18 trials are done"
    return folder


@pytest.fixture
def copied(searched: Path, tmp_path: Path) -> SearchSettings:
    """That study once more, to go on with."""
    shutil.copy(searched / "s.db", tmp_path / "s.db")
    return settings_for(tmp_path)


def row_of(run: Run) -> dict[str, float]:
    """The row that ought to stand for a run, found by hand."""
    with TABLE.open() as file:
        rows = [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]
    same = [row for row in rows if math.isclose(row["train_flops"], run.budget_flops, rel_tol=0.05)]
    return min(same, key=lambda row: abs(math.log(row["n_params"] / run.n_params)))


def test_every_run_of_a_budget_is_replayed_once_and_as_it_was(tmp_path: Path) -> None:
    settings = settings_for(tmp_path, rungs=Rungs(), sampler="grid", trials=50)
    outcome = search(settings, Hooks())
    assert outcome.reason == "all 6 runs of the table at 1e+16 FLOPs have been replayed"
    found = trials(settings)
    assert len(found) == 6
    for run in found:
        row = row_of(run)
        assert run.val_loss_nats == row["val_loss_nats"]
        assert run.n_params == pytest.approx(row["n_params"], rel=0.01)
        assert run.planned_tokens == pytest.approx(row["tokens"], rel=0.02)
        assert run.planned_flops_nanogpt <= 10**16
        assert run.device_name == "replayed"
        line = int(re.search(r"line (\d+) of the table", run.reason or "").group(1))  # type: ignore[union-attr]
        told = TABLE.read_text().splitlines()[line - 1].split(",")
        assert [float(cell) for cell in told] == list(row.values())
    assert len({run.n_params for run in found}) == 6
    assert outcome.best is not None
    assert outcome.best.val_loss_nats == 5.6129


def test_a_replay_goes_on_as_if_it_had_never_stopped(tmp_path: Path) -> None:
    """Refused proposals too: each size may be tried on every rung, after a restart as before."""
    found = []
    for name in ("straight", "crashed"):
        (tmp_path / name).mkdir()
        settings = settings_for(tmp_path / name, trials=14)
        if name == "crashed":
            taken = [run.number for run in trials(settings_for(tmp_path / "straight"))]
            for number in (taken[5], taken[8]):
                with pytest.raises(KeyboardInterrupt):
                    search(settings, Hooks(observer=Crash(number)))
        assert search(settings, Hooks()).n_finished == 14
        with Store.open(settings.storage) as store:
            refused = [(r.number, r.params) for r in store.rejections(store.study().id)]
        tried = [(r.number, r.params, r.budget_flops, r.val_loss_nats) for r in trials(settings)]
        found.append((refused, tried))
    assert found[0] == found[1]


def test_a_size_is_tried_on_several_rungs(searched: Path) -> None:
    found = trials(settings_for(searched))
    assert all(run.val_loss_nats == row_of(run)["val_loss_nats"] for run in found)
    assert len({(run.budget_flops, run.n_params) for run in found}) == 18
    assert len({run.n_params for run in found}) == 8
    with Store.open(searched / "s.db") as store:
        again = [r for r in store.rejections(store.study().id) if r.reason == "duplicate"]
    assert len(again) <= 1  # of the first four, which only spread


def test_no_law_is_told_rates_batches_or_shapes(searched: Path) -> None:
    points = FittedRuns.of(trials(settings_for(searched)), known_settings=False)
    assert len(points.runs) == 18
    told = points_of(points, "charged")
    assert {(one.max_lr, one.batch_tokens, one.stderr_nats) for one in told} == {(None, None, 0.0)}
    assert [one.n_params for one in told] == [run.n_params for run in points.runs]
    (law,) = fit_runs(points).laws
    assert (law.counts, law.weight) == ("charged", 1.0), "sizes of a table are counted once"
    assert (law.fit.knows_lr, law.fit.knows_batch, law.effects.names) == (False, False, ())


def test_a_promotion_is_looked_up_and_both_answers_are_scored(copied: SearchSettings) -> None:
    done = promote(PromoteSettings(storage=copied.storage, scale=10), PromoteHooks())
    run = done.run
    assert run is not None
    assert run.val_loss_nats == row_of(run)["val_loss_nats"]
    assert done.predicted is not None
    with Store.open(copied.storage) as store:
        study = store.study()
        below = [r for r in store.runs(study.id) if r.kind == "trial"]
        found = regrets(
            study, fit_study(study, below, 10.0), store.best_run(study.id), Replay(TABLE).table
        )
    assert found is not None
    measured, predicted = found.answers
    assert predicted.number == done.trial.number
    assert predicted.regret_nats == pytest.approx(run.val_loss_nats - 4.3469)
    best = min((r for r in trials(copied) if r.scale == 1), key=lambda r: r.val_loss_nats or 0.0)
    assert (measured.number, measured.n_params) == (best.number, best.n_params)
    assert measured.regret_nats == pytest.approx(4.5422 - 4.3469)  # 8 M parameters
    words = done.regret or ""
    assert words == found.sentence
    assert words.startswith(
        "regret at 1e+17 FLOPs over the table's best there (4.3469 nats, 3.2e+07"
    )
    assert f"measured best (trial {best.number}, 8" in words
    assert words.endswith(f"{predicted.regret_nats:.4f} nats")
    assert sorted(p.name for p in Path(str(run.output_dir)).iterdir()) == [
        "config.yaml", "curve.csv", "eval.json",
    ]  # fmt: skip
    report = json.loads((Path(str(run.output_dir)) / "eval.json").read_text())
    assert report["reason"] == run.reason


def test_a_promotion_without_a_run_is_refused_before_it_is_entered(copied: SearchSettings) -> None:
    smallest = min(trials(copied), key=lambda run: run.n_params)
    for scale, message in (
        (10.0, "no run of the table near N = 5.01e\\+05, C = 1e\\+17; it has 4e\\+06"),
        (7.0, "its budgets are 1e\\+15, 3e\\+15, 1e\\+16, 1e\\+17"),
    ):
        wanted = PromoteSettings(storage=copied.storage, scale=scale, trial=smallest.number)
        with pytest.raises(ConfigError, match=f"trial {smallest.number} is refused: .*{message}"):
            promote(wanted, PromoteHooks())
    wanted = PromoteSettings(storage=copied.storage, scale=10, overrides=("max_lr=1",))
    with pytest.raises(ConfigError, match="leave out --set"):
        promote(wanted, PromoteHooks())
    with Store.open(copied.storage) as store:
        assert store.runs(store.study().id, kind="promotion") == []


def test_a_table_is_known_by_its_checksum(tmp_path: Path) -> None:
    table = tmp_path / "runs.csv"
    shutil.copy(TABLE, table)
    search(settings_for(tmp_path, backend=Replay(table)), Hooks())
    moved = table.rename(tmp_path / "moved.csv")
    asked = PromoteSettings(storage=tmp_path / "s.db", scale=10)
    with pytest.raises(DataError, match="is not there any more"):
        promote(asked, PromoteHooks())
    again = settings_for(tmp_path, backend=Replay(moved), trials=10)
    assert search(again, Hooks()).n_finished == 10
    assert promote(asked, PromoteHooks()).run is not None
    moved.write_text(moved.read_text().replace("5.6129", "5.6128"))
    with pytest.raises(StudyError, match="another source of losses"):
        search(settings_for(tmp_path, backend=Replay(moved)), Hooks())
    with pytest.raises(DataError, match="its checksum differs"):
        promote(asked, PromoteHooks())


def table_of(folder: Path, *rows: str, head: str = "n_params,tokens,val_loss_nats") -> str:
    """A table of these rows."""
    path = folder / "t.csv"
    path.write_text("\n".join([head, *rows]) + "\n")
    return str(path)


THREE = ("1e6,1e9,5.0", "2e6,5e8,4.9", "4e6,2.5e8,5.1")
GROUPED = tuple(f"{row},{group}" for row in THREE for group in "ab")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--replay", "none.csv"), "none.csv: no such file"),
        (("--replay", str(TABLE), "--budget", "2e15"),
         "no run near 2e+15 FLOPs (6·N·D); its budgets are 1e+15, 3e+15, 1e+16, 1e+17"),
        (("--replay", str(TABLE), "--budget", "1e16", "--rungs", "0.5,1"),
         "--rungs 0.5: isoflop.csv has no run near 5e+15 FLOPs (6·N·D); its budgets are 1e+15, "
         "3e+15, 1e+16, 1e+17; as multiples of --budget 0.1, 0.3, 1, 10"),
        (("--replay", str(TABLE), "--prune"), "leave out --prune"),
        (("--replay", str(TABLE), "--trials-per-gpu", "2"), "leave out --trials-per-gpu"),
        (("--replay", str(TABLE), "--simulate"), "leave out --simulate"),
        (("--replay", str(TABLE), "--set", "max_lr=1"), "leave out --set"),
        (("--replay", str(TABLE), "--convention", "mac"), "leave out --convention"),
        (("--replay", str(TABLE), "--data", "demo"), "leave out --data"),
        (("--replay", str(TABLE), "--tokenizer", "gpt2"), "leave out --data, --tokenizer"),
        (("--replay", str(TABLE), "--budget", "3e15", "--rungs", "0.3333,1", "--sampler", "grid"),
         "leave out --sampler grid"),
    ],
)  # fmt: skip
def test_what_a_table_cannot_answer_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Callable[..., str],
    words: tuple[str, ...], message: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert message in refused("search", *words, "--trials", "1")
    assert not (tmp_path / "budgetsweep.db").exists()


@pytest.mark.parametrize(
    ("rows", "column", "message"),
    [
        (THREE[:2], "", "runs of 2 sizes at 6e+15 FLOPs; a search needs 3"),
        (GROUPED, ",dataset", "several groups (a, b)"),
        ([*THREE, "5e1,2e13,7"], "", "no decoder has about the 50 parameters"),
    ],
)
def test_tables_that_cannot_be_searched(
    tmp_path: Path, rows: Sequence[str], column: str, message: str
) -> None:
    table = Path(table_of(tmp_path, *rows, head=f"n_params,tokens,val_loss_nats{column}"))
    with pytest.raises((ConfigError, DataError), match=re.escape(message)):
        SearchSettings(backend=Replay(table), budget_flops=6 * 10**15).resolved_space()


def test_of_several_runs_of_one_size_the_best_counts(tmp_path: Path) -> None:
    path = table_of(tmp_path, *THREE, "2e6,5e8,4.8", "2e6,5e8,4.85")
    settings = settings_for(
        tmp_path, backend=Replay(Path(path)), rungs=Rungs(), budget_flops=6 * 10**15, trials=9
    )
    best = search(settings, Hooks()).best
    assert best is not None
    assert best.val_loss_nats == 4.8
    assert "line 5 of the table" in (best.reason or "")


SIZES = st.lists(
    st.floats(2e4, 1e11), min_size=3, max_size=8, unique_by=lambda n: round(math.log(n), 1)
)


@given(SIZES, st.floats(1e18, 1e24))
@hypothesis_settings(max_examples=25, deadline=None)
def test_every_size_of_a_table_has_a_shape_that_stands_for_it(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[float], flops: float
) -> None:
    rows = [f"{n!r},{flops / 6 / n!r},{3 + i / 10}" for i, n in enumerate(sizes)]
    folder = tmp_path_factory.mktemp("table")
    replay = Replay(Path(table_of(folder, *rows)))
    settings = SearchSettings(backend=replay, budget_flops=int(flops))
    space = settings.resolved_space()
    losses = set()
    for width in space.parameters["n_embd"].all_values():
        data = space.run_data({"n_embd": width}, settings.base())
        config = parse(RunConfig, {**data, "budget_flops": int(flops)}, "test")
        steps = int(flops) // config.flops_per_step("nanogpt")
        place = replay.table.place(config.with_changes(num_training_steps=steps))
        assert place is not None
        assert abs(place.params_off) <= 0.025
        assert abs(place.flops_off) <= 0.05
        losses.add(place.run.loss_nats)
    assert len(losses) == len(sizes)


@pytest.mark.slow
def test_every_screen_says_replayed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    command("search", "--replay", str(TABLE), "--trials", "1")  # 1e15 is one of its budgets
    text = command("search", "--replay", str(TABLE), "--budget", "1e16", "--rungs", "0.1,0.3,1",
               "--trials", "12", "--for-scale", "10")  # fmt: skip
    assert "data: REPLAYED table isoflop.csv (25 runs of 10 sizes at 4 budgets" in text
    assert "stands for line" in text
    assert "regret" in command("promote", "--scale", "10")
    assert "data: REPLAYED table" in command("status")
    assert " on replayed-isoflop.csv: " in command(
        "search", "--replay", str(TABLE), "--budget", "1e16", "--dry-run"
    )
    figures = (runs.history, runs.learning_curves, runs.schedule)
    write_report(Facts(read_study("budgetsweep.db")), tmp_path / "report", figures)
    for name in ("report.md", "report.html"):
        report = (tmp_path / "report" / name).read_text(encoding="utf-8")
        assert "REPLAYED table isoflop.csv" in report
        assert "nothing trained" in report
        assert "stands for line" in report
        assert "learning rate follows" not in report
    drawn = {path.stem for path in (tmp_path / "report" / "figures").iterdir()}
    assert drawn == {"history"}  # the others show what no table tells
