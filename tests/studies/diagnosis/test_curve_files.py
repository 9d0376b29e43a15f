"""Curves from folders, studies and anybody's files; every mistake is one line with its place."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from budgetsweep.errors import DataError, StudyError
from studies.database.run_kind import RunKind
from studies.database.store import Store
from studies.diagnosis.curve_files import read_curve, read_curve_file, read_run
from studies.diagnosis.curves import COLUMNS
from tests.support.synthetic_study import fill_database
from trainer.checkpoints.artefacts import curve_csv
from trainer.events import Point

LOSSES = st.one_of(st.none(), st.floats(0.0, 1e3))
POINTS = st.lists(
    st.builds(
        Point, step=st.integers(1, 10**9), tokens=st.integers(0, 10**12),
        flops=st.integers(0, 2**60), seconds=st.floats(0, 1e6), train_loss_nats=st.floats(0.0, 1e3),
        val_loss_nats=LOSSES, lr=LOSSES, grad_norm=LOSSES,
    ),
    min_size=1, max_size=8, unique_by=lambda point: point.step,
)  # fmt: skip


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], Path]:
    def make(text: str, name: str = "curve.csv") -> Path:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return make


@given(points=POINTS)
def test_what_the_trainer_writes_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, points: list[Point]
) -> None:
    points = sorted(points, key=lambda point: point.step)
    path = tmp_path_factory.mktemp("run") / "curve.csv"
    path.write_text(curve_csv(points), encoding="utf-8")
    curve, failure = read_curve_file(path)
    assert failure is None
    for name in COLUMNS:
        expected = [getattr(p, name) for p in points]
        assert getattr(curve, name) == pytest.approx(
            [math.nan if value is None else float(value) for value in expected], nan_ok=True
        )


def test_lines_of_one_step_are_one_point_and_other_columns_are_passed_over(write) -> None:
    path = write(
        '{"iter": 10, "train/loss": 4.5, "lr": 0.001, "note": "x"}\n\n'
        '{"iter": 10, "val/loss": 4.6}\n{"iter": 20, "train/loss": 4.0}\n',
        "log.jsonl",
    )
    curve, _ = read_curve_file(path)
    assert curve.step.tolist() == [10, 20]
    assert curve.train_loss_nats.tolist() == [4.5, 4.0]
    assert curve.val_loss_nats.tolist() == pytest.approx([4.6, np.nan], nan_ok=True)
    spaced, _ = read_curve_file(write("step, train_loss ,lr\n1,5.0,\n2, 4.5 ,1e-3\n", "a.csv"))
    assert spaced.train_loss_nats.tolist() == [5.0, 4.5]
    assert spaced.lr.tolist() == pytest.approx([np.nan, 1e-3], nan_ok=True)


def test_a_curve_ends_where_its_loss_diverged(write) -> None:
    curve, failure = read_curve_file(write("step,train_loss\n1,5.0\n2,nan\n3,4.0\n"))
    assert curve.step.tolist() == [1]
    assert failure == "the loss became nan at step 2"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file is empty; expected columns step, train_loss"),
        ("step,train_loss\n", "no losses; expected columns"),
        ("step,lr\n1,0.1\n", "no losses"),
        ("steep,train_loss\n1,5\n", "no column step; did you mean 'steep'?"),
        ("step,train_loss\n1,5\n2,high\n", "line 3: train_loss = 'high'; expected a number"),
        ("step,train_loss\n1.5,5\n", "line 2: step = 1.5; expected a whole number"),
        ("step,train_loss\nnan,5\n", "line 2: step = nan; expected a whole number"),
        ("step,train_loss\n-1,5\n", "line 2: step = -1"),
        ("step,train_loss\n,5\n", "line 2: no step"),
        ("step,train_loss\n5,4\n3,4\n", "line 3: steps go back from 5 to 3"),
        ('{"step": 1, "loss": 5}\n{"step": 2,\n', "line 2: not JSON"),
        ('{"step": 1, "loss": 5}\n[1]\n', "line 2: expected {"),
        ('{"step": 1, "loss": [5]}\n', "line 1: loss = [5]; expected a number"),
    ],
)
def test_a_line_that_is_no_point_is_named(write, text: str, message: str) -> None:
    path = write(text)
    with pytest.raises(DataError) as caught:
        read_curve_file(path)
    assert str(caught.value).startswith(str(path))
    assert message in str(caught.value)


def test_places_without_a_curve(tmp_path: Path, write) -> None:
    with pytest.raises(DataError, match="no such file; expected a run's folder"):
        read_curve(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no curve\.csv; expected the folder of a complete run"):
        read_curve(tmp_path / "empty")


def test_a_run_folder_tells_its_configuration(tmp_path: Path, write) -> None:
    write("step,train_loss_nats\n1,5.0\n")
    write(
        "model_config: {n_embd: 16, n_head: 2, n_positions: 32, n_layer: 1}\n"
        "batch_size: 4\nseq_len: 32\ngrad_accumulation_steps: 3\nnum_training_steps: 50\n"
        "num_warmup_steps: 5\nmax_lr: 1e-3\nmin_lr: 1e-4\n",
        "config.yaml",
    )
    write(json.dumps({"val-loss": 4.0 * math.log(2), "val_bits_per_byte": 1.0}), "eval.json")
    facts = read_curve(tmp_path).facts
    assert (facts.num_steps, facts.warmup_steps, facts.sequences_per_step) == (50, 5, 12)
    assert (facts.tokens_per_step, facts.n_vocab, facts.grad_clip) == (384, 50257, 1.0)
    assert facts.bytes_per_token == pytest.approx(4.0)


def test_a_trial_of_a_study(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'study.db'}"
    Store.open(url, create=True).close()
    fill_database(url, trials=3, failed=1, rejections=1, points=15)
    source = read_run(url, None, RunKind.TRIAL, 0)
    assert source.name == "trial 0 of study c4-1e15"
    assert len(source.curve) >= 15
    assert source.facts.bytes_per_token == 4.4
    assert read_run(url, None, RunKind.PROMOTION, 0).facts.num_steps is not None
    with pytest.raises(StudyError, match="study c4-1e15: no trial 44 \\(it has 0 to"):
        read_run(url, None, RunKind.TRIAL, 44)
    with pytest.raises(StudyError, match="no study 'other'"):
        read_run(url, "other", RunKind.TRIAL, 0)
