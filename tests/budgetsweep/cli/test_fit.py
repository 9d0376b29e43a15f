"""`budgetsweep fit`, as a user types it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from studies.scaling.result import ScalingFit
from tests.support.commands import run, run_json
from tests.support.scaling_worlds import LAW, grid, study

BUDGETS = (1e15, 3e15, 1e16, 3e16)


def csv_text(budgets: tuple[float, ...] = BUDGETS) -> str:
    lines = ["n_params,tokens,val_loss_nats"]
    lines += [f"{r.n_params},{r.tokens},{r.loss_nats}" for r in grid(budgets=budgets, noise=0.003)]
    return "\n".join(lines) + "\n"


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    path = tmp_path / "runs[red].csv"
    path.write_text(csv_text(), encoding="utf-8")
    return path


def test_what_it_prints(runs: Path) -> None:
    lines = run("fit", str(runs)).splitlines()
    assert lines[0].startswith(f"{runs}: 24 runs of 24 sizes at 4 budgets, 1e15 to 3e16 FLOPs, ")
    formula = lines.index("L(N, D) = E + [(A / N^alpha)^(1/delta) + (B / D^beta)^(1/delta)]^delta")
    law = [line.split()[0] for line in lines[formula + 2 : formula + 8]]
    assert law == ["E", "A", "alpha", "B", "beta", "delta"]
    rows = [line.split() for line in lines if "×" in line]
    assert [row[:2] for row in rows] == [["3e16", "×1"], ["3e17", "×10"], ["3e18", "×100"]]
    assert any("all runs are taken as well tuned" in line for line in lines)
    assert "outside the range fitted: parameters and tokens (marked *)" in lines


def test_json_holds_the_fit_and_the_predictions(runs: Path) -> None:
    words = ["--predict-flops", "1e17", "--predict-flops", "1e18", "--predict", "2e7", "1e9"]
    data = run_json("fit", str(runs), *words)
    asked = data["predictions"]
    assert [one["flops"] for one in asked] == pytest.approx([1e17, 1e18, 6 * 2e7 * 1e9])
    for one in asked:
        truth = float(LAW.loss(one["n_params"], one["tokens"]))
        assert one["loss_nats"] == pytest.approx(truth, rel=0.02)
        assert one["low_nats"] < one["loss_nats"] < one["high_nats"]
        assert one["perplexity"] == pytest.approx(np.exp(one["loss_nats"]))
    assert asked[0]["flops_ratio"] == pytest.approx(1e17 / 3e16, rel=1e-3)
    assert asked[0]["n_params_low"] < asked[0]["n_params"] < asked[0]["n_params_high"]
    assert "n_params_low" not in asked[2]
    found = ScalingFit.from_dict(data["fit"])
    assert found.predict(2e7, 1e9).loss_nats == pytest.approx(asked[2]["loss_nats"], rel=1e-4)
    assert set(data["law"]) == {"E", "A", "alpha", "B", "beta", "delta"}
    assert data["law"]["E"]["low"] < data["law"]["E"]["value"] < data["law"]["E"]["high"]
    assert data["held_out"] is None


def test_runs_above_max_flops_score_the_fit(runs: Path) -> None:
    words = ["fit", str(runs), "--max-flops", "1e16"]
    output = run(*words)
    assert ": 18 runs of 18 sizes at 3 budgets" in output.splitlines()[0]
    assert "of the 6 runs that were held out:" in output
    told = run_json(*words)["held_out"]
    assert told["all"]["n"] == 6
    assert told["all"]["mean_error"] < 0.015


def test_files(runs: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    output = run("fit", str(runs), "--out", str(out))
    names = {"isoflop_fit", "compute_frontier"}
    expected = {f"{name}.{ending}" for name in names for ending in ("png", "svg")} | {"fit.json"}
    assert {path.name for path in out.iterdir()} == expected
    assert all(name in output for name in expected)
    assert json.loads((out / "fit.json").read_text())["fit"]["n_points"] == 24


def test_rates_and_batches_of_a_search(tmp_path: Path) -> None:
    path = tmp_path / "trials.csv"
    rows = [
        f"{r.n_params},{r.tokens},{r.loss_nats},{r.max_lr},{r.batch_tokens}"
        for r in study(LAW, seed=0)
    ]
    path.write_text("\n".join(["N,D,loss,lr,batch_tokens", *rows]), encoding="utf-8")
    output = run("fit", str(path))
    for setting in ("learning rate", "batch size"):
        assert f"a {setting} a factor of e from the optimum costs 0.0" in output


def test_groups_and_the_floor(runs: Path) -> None:
    rows = csv_text().splitlines()
    other = [f"{row},b" for row in rows[1:]]
    runs.write_text("\n".join([f"{rows[0]},dataset", *(f"{r},a" for r in rows[1:]), *other]))
    assert "24 runs" in run("fit", str(runs), "--group", "a", "--entropy-nats", "1.2")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{runs}", "--group", "c4"], "no runs of group 'c4'; the table has no column group"),
        (["{runs}", "--max-flops", "1e14"], "no run of at most 1e14 FLOPs; the smallest has 1e15"),
        (
            ["{runs}", "--max-flops", "1e15"],
            "6 sizes at 1 budget; add runs at another budget",
        ),
        (["{runs}", "--out", "{runs}/out"], "cannot be written"),
    ],
)
def test_mistakes_are_one_line(
    words: list[str], message: str, refused: Callable[..., str], runs: Path
) -> None:
    before = sorted(runs.parent.iterdir())
    assert message in refused("fit", *(word.replace("{runs}", str(runs)) for word in words))
    assert sorted(runs.parent.iterdir()) == before
