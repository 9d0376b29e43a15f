"""What an earlier study at a tenth of the budget is worth as points of a later one's law.

    python -m benchmarks.earlier [--worlds A,B] [--seeds 10] [--trials 8] [--before 24]

Simulated searches by the real orchestrator: one at 1e14 FLOPs (`--before` trials, on no rungs),
then few trials at 1e15 for 100 times the budget, alone and with `--points-from`, without rungs and
with them. Regret is the noise-free loss at 1e17 of the run that `promote` would make, over the
lowest that any configuration of the space could reach there (`benchmarks.promotion`).
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import ROOT, about, write_results
from benchmarks.promotion import best_possible, outcome
from budgetsweep.config import parse
from budgetsweep.constraint import Limits
from studies.database.run_kind import RunKind
from studies.database.store import Store
from studies.prior_studies import prior_runs
from studies.scaling.prediction import fit_study
from studies.search import Hooks, search
from studies.settings import SearchSettings
from studies.simulation.backend import Simulated
from studies.simulation.worlds import SimulatedWorld, world_named
from studies.space.rungs import Rungs
from trainer.config import RunConfig

Row = dict[str, Any]

BEFORE, BUDGET, SCALE = 10**14, 10**15, 100.0
RUNGS = {"one budget": "1", "rungs 0.1,0.3,1": "0.1,0.3,1"}


def one_seed(args: argparse.Namespace, world: SimulatedWorld, seed: int, best: float) -> list[Row]:
    """An earlier search, and every kind of later one, with it and without."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        first = SearchSettings(
            storage=Path(folder) / "s.db", study="before", seed=1000 + seed,
            backend=Simulated(world.name),
            budget_flops=BEFORE, trials=args.before,
        )  # fmt: skip
        search(first, Hooks())
        for name, rungs in RUNGS.items():
            for points_from in ((), ("before",)):
                settings = SearchSettings(
                    storage=first.storage, study=f"{name} {len(points_from)}",
                    backend=Simulated(world.name),
                    seed=seed, budget_flops=BUDGET, trials=args.trials, rungs=Rungs.parse(rungs),
                    for_scale=SCALE, points_from=points_from,
                )  # fmt: skip
                search(settings, Hooks())
                rows.append({"arm": name + (", earlier study" if points_from else ""),
                             "seed": seed, **promoted(settings, world, best)})  # fmt: skip
    return rows


def promoted(settings: SearchSettings, world: SimulatedWorld, best: float) -> Row:
    """What `promote` would take, and what became of it."""
    with Store.open(settings.storage) as store:
        study = store.study(settings.study)
        runs = {run.number: run for run in store.runs(study.id, kind=RunKind.TRIAL)}
        measured = store.best_run(study.id)
        fit = fit_study(study, store.runs(study.id), SCALE, prior_runs(store, study))
    assert measured is not None
    number = fit.candidates[0].number if fit.candidates else measured.number
    config = parse(RunConfig, runs[number].config, "trial")
    budget = int(SCALE * BUDGET)
    _, row = outcome(
        world, fit, config, budget, study.convention, by_law=bool(fit.candidates)
    )  # fmt: skip
    return {**row, "refused": fit.refusal is not None, "regret": row["loss"] - best}


def markdown(result: Row, args: argparse.Namespace) -> str:
    """The table for people."""
    lines = [
        "# Prior studies as data points", "",
        f"`{result['command']}`; {result['machine']}, commit {result['commit']}. {args.seeds} "
        f"seeds a world: {args.before} trials at 1e14, then {args.trials} at 1e15 for 1e17. "
        "Simulated: nothing was trained.", "",
        "| world | later search | fits refused | regret at 1e17, median | quartiles | worst | "
        "inside 80 % |",
        "|---|---|---:|---:|---|---:|---:|",
    ]  # fmt: skip
    for world, rows in result["worlds"].items():
        for arm in dict.fromkeys(row["arm"] for row in rows):
            these = [row for row in rows if row["arm"] == arm]
            regrets = [row["regret"] for row in these]
            inside = [row["inside"] for row in these if "inside" in row]
            low, high = np.quantile(regrets, [0.25, 0.75])
            lines.append(
                f"| {world} | {arm} | {sum(row['refused'] for row in these)} of {len(these)} | "
                f"{statistics.median(regrets):.3f} | {low:.3f} to {high:.3f} | "
                f"{max(regrets):.3f} | {sum(inside)} of {len(inside)} |"
            )
    return "\n".join([*lines, ""])


def main() -> int:
    """Run the seeds and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--worlds", default="porian2024-refinedweb,hoffmann2022")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--before", type=int, default=24)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    args = parser.parse_args()
    command = " ".join(["python -m benchmarks.earlier", *sys.argv[1:]])
    result: Row = {**about(command), "worlds": {}}
    for name in args.worlds.split(","):
        settings = SearchSettings(backend=Simulated(name), budget_flops=BUDGET, for_scale=SCALE)
        limits = Limits(int(SCALE * BUDGET), settings.convention)
        world = world_named(name)
        best, _ = best_possible(world, settings.resolved_space(), settings.base(), limits)
        rows = result["worlds"][name] = []
        for seed in range(args.seeds):
            rows += one_seed(args, world, seed, best)
            shown = {r["arm"]: round(r["regret"], 3) for r in rows if r["seed"] == seed}
            print(name, seed, shown, flush=True)
    text = markdown(result, args)
    write_results(args.out, "earlier", result, text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
