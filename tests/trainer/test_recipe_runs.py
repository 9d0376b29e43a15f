"""What `benchmarks.recipe` counts as a run of a variant."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.recipe import configured, read_runs, settings_of, table

BUDGET = 1e12


def kept(name: str, seed: int, loss: float, trained: str | None) -> dict[str, Any]:
    """A line of the file: told as `name`, with the settings of `trained`."""
    run = {
        "variant": name, "budget": BUDGET, "seed": seed, "val_loss_nats": loss, "tokens": 1,
        "n_params": 1,
    }  # fmt: skip
    settings = None if trained is None else settings_of(configured(trained, BUDGET, seed))
    return run if settings is None else {**run, "settings": settings}


def test_a_run_is_of_the_variant_whose_settings_it_has(tmp_path: Path) -> None:
    file = tmp_path / "runs.jsonl"
    lines = [
        kept("modern", 0, 6.0, "modern"),
        kept("modern", 1, 6.1, "RMSNorm + no biases"),  # the recipe before it was changed
        kept("modern", 2, 6.2, None),  # does not say what was trained
        {**kept("modern", 3, 6.3, "modern"), "budget": 1e13},
        kept("biases", 0, 5.9, "wsd"),
        kept("modern", 1, 6.4, "modern"),
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    runs = read_runs(file, BUDGET)
    by_variant: dict[str, list[tuple[int, float]]] = {}
    for run in runs:
        by_variant.setdefault(run["variant"], []).append((run["seed"], run["val_loss_nats"]))
    same = {"modern", "heads of 16", "D48 L2", "batch 16"}  # the recipe, at this budget
    assert by_variant.keys() == same | {"RMSNorm + no biases", "wsd"}
    assert by_variant["modern"] == by_variant["D48 L2"] == [(0, 6.0), (1, 6.4)]
    assert by_variant["RMSNorm + no biases"] == [(1, 6.1)]
    rows = {row["variant"]: row for row in table(runs)}
    assert rows.keys() == {"modern", "RMSNorm + no biases", "wsd"}  # none twice
    assert rows["modern"]["n"] == 2
    assert abs(rows["RMSNorm + no biases"]["gap"] + 0.3) < 1e-9  # from the same seed
    assert rows["modern"]["losses"] == {"0": 6.0, "1": 6.4}


def test_no_file_is_no_run(tmp_path: Path) -> None:
    assert read_runs(tmp_path / "none.jsonl", BUDGET) == []
