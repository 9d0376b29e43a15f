"""The samplers' benchmark on a table of runs: what counts as arrived, and results that are kept."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import samplers
from studies.simulation.replay import Replay

TABLE = Path(__file__).parents[2] / "examples" / "isoflop.csv"


def test_a_replayed_search_arrives_at_a_size_near_the_best() -> None:
    problem = samplers.replayed(Replay(TABLE), 10**16)
    assert problem.best == 5.6129
    assert problem.space.size() == 6
    for sampler in ("random", "law"):
        arm = samplers.Arm(sampler, equation=True, first=False)
        found = samplers.search(problem, arm, 6, seed=3)
        assert found.trials is not None  # six trials are all there are: only 8 M is near enough
        assert found.regret_nats == 0.0
    first = samplers.search(problem, samplers.Arm("qmc", equation=True, first=True), 1, seed=0)
    assert (first.trials, first.refused) == (1, 0)


def test_results_of_other_arms_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arm = {"n": 1, "cap": 60, "arrived": 1, "quartiles": [7, 7, 7], "regret_median_nats": 0.01}
    before = {
        "machine": "m", "commit": "c0", "command": "before",
        "worlds": {"w": {"best_nats": 5.0, "arms": {"an arm": arm}}},
    }  # fmt: skip
    (tmp_path / "samplers.json").write_text(json.dumps(before))
    words = ["--worlds", "", "--seeds", "1", "--table", str(TABLE), "--budgets", "1e16"]
    monkeypatch.setattr(samplers, "REPLAYED", (samplers.Arm("qmc", True, True),))
    monkeypatch.setattr(sys, "argv", ["samplers", *words, "--add", "--out", str(tmp_path)])
    samplers.main()
    after = json.loads((tmp_path / "samplers.json").read_text())
    assert after["worlds"] == before["worlds"]
    assert after["replay"]["budgets"]["1e16"]["arms"]["qmc, first"]["trials"] == [1]
    text = (tmp_path / "samplers.md").read_text()
    assert "| an arm | **7** (7 to 7) |" in text
    assert "| qmc, first | **1** (1 to 1) | 0 |" in text
    assert "replay 1e16: qmc, first" in capsys.readouterr().out
