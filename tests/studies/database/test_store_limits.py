"""The store on a full disk, a damaged file, and with many runs."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, text

from budgetsweep.constraint import Rejected
from budgetsweep.errors import Reason, StudyError
from studies.database.store import Store
from tests.support.tiny_studies import add_run, new_study
from trainer.events import Point, RunResult, RunStatus


def point(step: int) -> Point:
    return Point(step=step, tokens=16 * step, flops=step, seconds=0.5, train_loss_nats=3.0)


class TestDisasters:
    def test_a_full_disk_is_one_line_and_loses_nothing(self, tmp_path: Path) -> None:
        store = Store.open(tmp_path / "runs.db", create=True)
        study = new_study(store)
        run_id = add_run(store, study.id)
        store.start_attempt(run_id)

        @event.listens_for(store.engine, "checkout")
        def _limit(connection: Any, *_: object) -> None:
            connection.execute("PRAGMA max_page_count = 1")  # SQLite: no more than now

        message = r"runs\.db: no room left on the disk; free some"
        with pytest.raises(StudyError, match=message):
            store.add_points(run_id, [point(k) for k in range(1, 3000)])
        assert store.points(run_id) == []
        assert store.run(run_id).step == 0

        def fill() -> None:
            for number in range(1, 1000):
                add_run(store, study.id, number=number)

        with pytest.raises(StudyError, match=message):
            fill()
        runs = len(store.runs(study.id))
        assert 1 < runs < 1000
        planned = store.ledger(study.id).planned
        assert (planned.steps, planned.tokens) == (12 * runs, 12 * 16 * runs)
        event.remove(store.engine, "checkout", _limit)
        store.close()
        with Store.open(tmp_path / "runs.db") as again:
            again.add_points(run_id, [point(k) for k in range(1, 3000)])
            assert len(again.points(run_id)) == 2999
            with again.engine.connect() as connection:
                assert connection.execute(text("PRAGMA integrity_check")).scalar() == "ok"

    def test_the_file_is_plain_sqlite_for_everyone(self, tmp_path: Path) -> None:
        """Closed, all is in one file that any tool reads."""
        with Store.open(tmp_path / "runs.db", create=True) as store:
            new_study(store, "plain")
        assert [p.name for p in tmp_path.iterdir()] == ["runs.db"]
        connection = sqlite3.connect(tmp_path / "runs.db")
        assert connection.execute("SELECT name, budget_flops FROM bs_study").fetchall() == [
            ("plain", str(10**15))
        ]
        connection.close()


def test_cost_of_a_call_does_not_grow_with_the_runs(tmp_path: Path) -> None:
    """Counted in steps of SQLite's virtual machine: exact where a clock is not."""
    with Store.open(tmp_path / "runs.db", create=True) as store:
        study = new_study(store)
        count = 0

        def trial(number: int) -> None:
            run_id = add_run(store, study.id, number=2 * number)
            store.start_attempt(run_id)
            store.add_points(run_id, [point(6), point(12)])
            store.record_executed(run_id, 12)
            result = RunResult(RunStatus.COMPLETE, 12, 12, 192, val_loss_nats=3.0 + number % 7)
            store.finish_run(run_id, result)
            rejected = Rejected(list(Reason)[number % 3], "")
            store.add_rejection(study.id, 2 * number + 1, {}, rejected)
            store.best_run(study.id)
            store.run(run_id)
            store.runs(study.id, statuses=["queued", "running", "interrupted"])

        def tick() -> int:
            nonlocal count
            count += 1
            return 0

        def cost(number: int) -> int:
            nonlocal count
            count = 0
            trial(number)
            return count

        store.engine.dispose()

        @event.listens_for(store.engine, "checkout")
        def _count(connection: Any, *_: object) -> None:
            connection.set_progress_handler(tick, 10)

        few = max(cost(number) for number in range(10))
        for number in range(10, 100):
            trial(number)
        many = max(cost(number) for number in range(100, 110))
        assert many < 1.2 * few, (few, many)
