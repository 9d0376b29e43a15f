"""`budgetsweep diagnose` and the verdicts in `status`, as a user types them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import create_engine, select
from sqlalchemy.orm import Session

from studies.database.store import Store
from studies.database.tables import PointRow, Run
from tests.support.commands import run, run_json
from tests.support.synthetic_study import fill_database

SPIKE = 15


def csv_text(spike: float = 0.0) -> str:
    rng = np.random.default_rng(0)
    lines = ["step,train_loss"]
    for k in range(1, 61):
        loss = 2.0 + 3.5 / (1 + k / 2) ** 0.8 + 0.02 * rng.normal() + (spike if k == SPIKE else 0)
        lines.append(f"{10 * k},{loss:.4f}")
    return "\n".join(lines) + "\n"


@pytest.fixture
def spiked(tmp_path: Path) -> Path:
    path = tmp_path / "run[red].csv"
    path.write_text(csv_text(spike=4.0), encoding="utf-8")
    return path


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """Five trials; the loss of trial 1 leapt once, trial 4 failed."""
    path = tmp_path / "study.db"
    url = f"sqlite:///{path}"
    Store.open(url, create=True).close()
    fill_database(url, trials=5, failed=1, rejections=0, points=40)
    engine = create_engine(url)
    with Session(engine) as session, session.begin():
        run = session.scalars(select(Run).where(Run.kind == "trial", Run.number == 1)).one()
        point = session.scalars(select(PointRow).where(PointRow.run_id == run.id)).all()[SPIKE]
        assert point.train_loss_nats is not None
        point.train_loss_nats += 5.0
    engine.dispose()
    return path


def test_a_bare_csv_in_plain_lines(spiked: Path) -> None:
    lines = run("diagnose", str(spiked)).splitlines()
    assert lines[0] == f"{spiked}: 60 points"
    assert lines[1].startswith("lr_too_high: the training loss rose from ")
    assert lines[1].endswith("to 150")
    assert lines[2].startswith("  do: try max_lr 3 and 10 times lower")
    assert any(line.startswith("The training loss stayed within") for line in lines)
    assert "not looked for: overfitting: fewer than 3 validation losses" in lines


def test_json_holds_the_same(spiked: Path) -> None:
    data = run_json("diagnose", str(spiked))
    assert data["run"] == str(spiked)
    assert data["points"] == 60
    assert [v["name"] for v in data["verdicts"]] == ["lr_too_high"]
    assert set(data["verdicts"][0]) == {"name", "label", "evidence", "cure"}
    assert data["steps"]["series"] == "training"


def test_a_healthy_curve_and_a_curve_too_short(tmp_path: Path) -> None:
    path = tmp_path / "sound.csv"
    path.write_text(csv_text(), encoding="utf-8")
    output = run("diagnose", str(path))
    assert output.splitlines()[1].startswith("healthy: the training loss fell from ")
    assert "do:" not in output
    path.write_text("step,train_loss\n1,5\n2,4\n", encoding="utf-8")
    assert "2 training losses: it takes 12" in run("diagnose", str(path))


def test_trials_of_a_study_and_status(study: Path) -> None:
    words = ["--storage", str(study)]
    assert "lr_too_high: the training loss rose" in run("diagnose", "--trial", "1", *words)
    failed = run("diagnose", "--trial", "4", *words)
    assert "lr_too_high: training loss became nan at step" in failed
    status = run_json("status", *words)
    assert status["verdicts"] == {"lr_too_high": {"count": 2, "trials": [1, 4]}}
    assert status["best"]["verdicts"]
    assert status["promotions"][0]["verdicts"]
    assert "learning rate too high: 2 trials (1, 4)" in run("status", *words)
