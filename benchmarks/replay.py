"""Which trial to promote, on the real losses of a table of finished runs.

    python -m benchmarks.replay RUNS.csv [--budget 1e17] [--rungs 0.125,0.5,1]
        [--scales 8,16,64] [--trials 15] [--seeds 10]

Each seed is a replayed search by the real orchestrator (docs/simulation.md). Regret is the loss of
the table's run that stands for the promotion over the lowest of the table at that budget; where
the table has no run of that size it is not known. Coverage is of the 80 % interval.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import ROOT, about, write_results
from studies.database.store import Store
from studies.scaling.prediction import fit_study
from studies.search import Hooks, search
from studies.settings import SearchSettings
from studies.simulation.regret import regrets
from studies.simulation.replay import Replay
from studies.space.rungs import Rungs

Row = dict[str, Any]


def one_seed(args: argparse.Namespace, table: Replay, scale: float, seed: int) -> Row:
    """A replayed search and what its answers came to."""
    with tempfile.TemporaryDirectory() as folder:
        settings = SearchSettings(
            storage=Path(folder) / "s.db", backend=table, budget_flops=int(args.budget),
            rungs=Rungs.parse(args.rungs), for_scale=scale, trials=args.trials, seed=seed,
            sampler=args.sampler,
        )  # fmt: skip
        search(settings, Hooks())
        with Store.open(settings.storage) as store:
            study = store.study()
            fit = fit_study(study, store.runs(study.id), scale)
            found = regrets(study, fit, store.best_run(study.id), table.table)
    assert found is not None
    row: Row = {"seed": seed, "refusal": fit.refusal}
    for one in found.answers:
        told = next(c for c in fit.candidates if c.number == one.number)
        row[one.name] = {"n_params": one.n_params, "regret": one.regret_nats}
        if one.place is not None:
            loss = one.place.run.loss_nats
            row[one.name] |= {
                "error": told.loss_nats / loss - 1,
                "inside": told.low_nats <= loss <= told.high_nats,
            }
    return row


def line(scale: str, name: str, rows: list[Row]) -> str:
    """One of the table's."""
    answers = [row[name] for row in rows if name in row]
    known = [one for one in answers if one["regret"] is not None]
    size = float(np.median([one["n_params"] for one in answers])) / 1e6
    cells = ["–"] * 4
    if known:
        low, middle, high = np.quantile([one["regret"] for one in known], [0.25, 0.5, 0.75])
        cells = [
            f"{middle:.4f} ({low:.4f} to {high:.4f})",
            f"{max(one['regret'] for one in known):.4f}",
            f"{100 * np.median([one['error'] for one in known]):+.1f} %",
            f"{sum(one['inside'] for one in known)}",
        ]
    first = [f"×{scale}", name, f"{size:.3g} M", f"{len(known)} of {len(rows)}"]
    return f"| {' | '.join([*first, *cells])} |"


def main() -> int:
    """Run the seeds and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("table", type=Path)
    parser.add_argument("--budget", type=float, default=1e17)
    parser.add_argument("--rungs", default="0.125,0.5,1")
    parser.add_argument("--scales", default="8,16,64")
    parser.add_argument("--trials", type=int, default=15)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--sampler", default="law")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    args = parser.parse_args()
    table = Replay(args.table)
    command = " ".join(["python -m benchmarks.replay", args.table.name, *sys.argv[2:]])
    result: Row = {**about(command), "scales": {}}
    lines = [
        f"# Which trial to promote: {args.table.name}, {args.budget:.0e}", "",
        f"`{command}`; {result['machine']}, commit {result['commit']}. {args.seeds} seeds of "
        f"{args.trials} trials, rungs {args.rungs}, sampler {args.sampler}. Known: the table has a "
        "run of that size at the larger budget. Error: of the prediction, median.", "",
        "| budget | best | parameters, median | known | regret, median (quartiles) | worst | error "
        "| inside 80 % |", "|---|---|---:|---:|---|---:|---:|---:|",
    ]  # fmt: skip
    for scale in args.scales.split(","):
        rows = [one_seed(args, table, float(scale), seed) for seed in range(args.seeds)]
        result["scales"][scale] = rows
        for name in ("predicted", "measured"):
            lines.append(line(scale, name, rows))
            print(lines[-1], flush=True)
    write_results(args.out, "replay", result, "\n".join([*lines, ""]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
