"""How well the scaling fit predicts runs of larger budgets that it has not seen.

    python -m benchmarks.backtest RUNS.csv [--group NAME] [--out FOLDER] [--name NAME] [--variants]

For every budget C of the table with another one below: fit the runs of at most C, predict those at
8, 16, 64 and 128 times C (the budgets of a table that doubles next to 10 and 100 times), score.
`--variants` does the same for other laws and settings, by which this one was chosen.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from benchmarks.common import ROOT, about, write_results
from budgetsweep.errors import FitRefused
from budgetsweep.formats import loss, percent
from studies.scaling import result
from studies.scaling.fit import fit as fit_law
from studies.scaling.fit_data import SAME_BUDGET, FitPoint, budgets_of
from studies.scaling.held_out_score import score
from studies.scaling.priors import Prior, Priors
from studies.scaling.result import ScalingFit
from studies.scaling.runs_csv import RunsTable, read_runs

RATIOS = (8, 16, 64, 128)
PARTS = ("valid", "best", "all")


@dataclasses.dataclass(frozen=True)
class Variant:
    """Settings of a fit that was tried."""

    name: str
    priors: Priors = Priors()  # noqa: RUF009 - frozen
    least_tokens_per_param: float = 0.0
    """Runs with fewer are left out of the fit."""
    undertrained_sd: float = result.UNDERTRAINED_SD
    misfit_share: float = result.MISFIT_SHARE


CHOSEN = Variant("as it is")
_AROUND_A_THIRD = Prior(math.log(0.3), 0.35)
_HOFFMANN = Priors(delta=Prior(0.0, 1e-3), exponent=_AROUND_A_THIRD)
VARIANTS = (
    CHOSEN,
    Variant("Hoffmann's law (delta = 1), all runs alike", _HOFFMANN,
            undertrained_sd=0.0),
    Variant("Hoffmann's law", _HOFFMANN),
    Variant("Hoffmann's law, 8 tokens per parameter or more", _HOFFMANN, 8.0),
    Variant("delta free, all runs alike", undertrained_sd=0.0),
    Variant("delta free, 1 token a parameter or more", Priors(), 1.0, 0.0),
    Variant("delta free, 3 tokens per parameter or more", Priors(), 3.0, 0.0),
    Variant("delta free, 8 tokens per parameter or more", Priors(), 8.0, 0.0),
    Variant("half the distrust of few tokens", undertrained_sd=0.05),
    Variant("twice the distrust of few tokens", undertrained_sd=0.2),
    Variant("E known to 20 %", Priors(entropy_sd=0.2)),
    Variant("E known to 6 %", Priors(entropy_sd=0.06)),
    Variant("E not known (a factor e)", Priors(entropy_sd=1.0)),
    Variant("exponents of 0.3, known to 35 %", Priors(exponent=_AROUND_A_THIRD)),
    Variant("exponents of 0.3, a factor 1.8", Priors(exponent=Prior(math.log(0.3), 0.6))),
    Variant("exponents known to 25 %", Priors(exponent=Prior(math.log(0.2), 0.25))),
    Variant("no misfit beyond the budgets", misfit_share=0.0),
    Variant("half the misfit beyond the budgets", misfit_share=0.35),
    Variant("1.5 times the misfit beyond the budgets", misfit_share=1.05),
)  # fmt: skip
"""The published approach, and the steps from it to ours."""


@contextlib.contextmanager
def _settings(variant: Variant) -> Iterator[None]:
    with (
        mock.patch.object(result, "UNDERTRAINED_SD", variant.undertrained_sd),
        mock.patch.object(result, "MISFIT_SHARE", variant.misfit_share),
    ):
        yield


def backtest(points: Sequence[FitPoint], variant: Variant = CHOSEN) -> dict[str, Any]:
    """Scores by ratio of budgets, pooled over the budgets that were fitted."""
    budgets = budgets_of(points)
    flops = np.array([one.flops for one in points])
    rows: list[dict[str, Any]] = []
    refused: list[str] = []
    for budget in budgets[1:]:
        below = [
            one
            for one in points
            if one.flops <= budget * math.sqrt(SAME_BUDGET)
            and one.tokens >= variant.least_tokens_per_param * one.n_params
        ]
        with _settings(variant):
            try:
                found = fit_law(below, priors=variant.priors)
            except FitRefused as error:
                refused.append(f"{budget:.3g}: {error}")
                continue
            rows += _rows(found, points, flops, budget)
    by_ratio = {
        str(ratio): _pooled([row for row in rows if row["ratio"] == ratio]) for ratio in RATIOS
    }
    return {"variant": variant.name, "by_ratio": by_ratio, "rows": rows, "refused": refused}


def _rows(
    found: ScalingFit, points: Sequence[FitPoint], flops: Any, budget: float
) -> Iterator[dict[str, Any]]:
    """A score a ratio for which the table has runs."""
    for ratio in RATIOS:
        near = np.abs(np.log(flops / (ratio * budget))) < math.log(SAME_BUDGET) / 2
        if near.any():
            told = score(found, [points[i] for i in np.flatnonzero(near)])
            yield {
                "fitted_to_flops": budget,
                "n_fitted": found.n_points,
                "ratio": ratio,
                **dataclasses.asdict(told),
            }


def _pooled(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means over the fits, each of which counts alike."""
    pooled: dict[str, Any] = {"n_fits": len(rows)}
    for part in PARTS:
        own = [row[part] for row in rows if row[part]["n"]]
        errors = [one["mean_error"] for one in own]
        pooled[part] = {
            "n": sum(one["n"] for one in own),
            "mean_error": float(np.mean(errors)) if own else None,
            "largest_mean_error": max(errors, default=None),
            "coverage": (
                sum(one["coverage"] * one["n"] for one in own) / sum(one["n"] for one in own)
                if own
                else None
            ),
        }
    regrets = [nats for row in rows for nats in row["regret_nats"]]
    pooled["regret_nats"] = {
        "mean": float(np.mean(regrets)) if regrets else None,
        "largest": max(regrets, default=None),
    }
    return pooled


def to_markdown(outcome: dict[str, Any]) -> str:
    """The result as tables."""
    chosen, others = outcome["results"][0], outcome["results"]
    lines = [
        f"# Backtest of the scaling fit on {outcome['table']}",
        "",
        f"`{outcome['command']}` at {outcome['commit']}, {outcome['machine']}. "
        f"{outcome['n_runs']} runs of {outcome['n_shapes']} sizes at {outcome['n_budgets']} "
        "budgets. Each fit saw only runs of at most its budget; *error* is the mean of "
        "|predicted / measured − 1| over the runs at so many times that budget, averaged over the "
        "fits (in brackets the worst fit); *inside* is the share in the 80 % interval; *valid* "
        f"runs have {result.UNDERTRAINED_BELOW:g} tokens per parameter or more, *best* is the "
        "lowest loss of the budget; *regret* is what the size that the fit would choose loses over "
        "the best measured one.",
        "",
        "| times the budget | fits | valid: error | inside | best: error | inside | all: error | "
        "inside | regret, nats |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for ratio, pooled in chosen["by_ratio"].items():
        cells = [f"×{ratio}", str(pooled["n_fits"])]
        for part in PARTS:
            one = pooled[part]
            cells += [
                f"{percent(one['mean_error'], 2)} ({percent(one['largest_mean_error'], 2)})",
                f"{percent(one['coverage'], 0)} of {one['n']}",
            ]
        nats = pooled["regret_nats"]
        cells.append(f"{loss(nats['mean'], 3)} (largest {loss(nats['largest'], 3)})")
        lines.append(f"| {' | '.join(cells)} |")
    if chosen["refused"]:
        lines += ["", "Refused: " + "; ".join(chosen["refused"]) + "."]
    if len(others) > 1:
        lines += ["", "## What was tried", "", "Error, and share inside, of valid runs and of the "
                  "best ones; mean regret; *refused*: fits, of those at all budgets but the first, "
                  "that were too uncertain and are left out of the means. The fit was chosen by "
                  "this table, so that its own row flatters it.", ""]  # fmt: skip
        heads = [f"×{ratio} {part}" for ratio in RATIOS for part in ("valid", "best")]
        lines += [
            f"| | refused | {' | '.join(heads)} | regret ×{RATIOS[0]} | ×{RATIOS[-1]} |",
            f"| --- |{' ---: |' * (len(heads) + 3)}",
        ]
        for tried in others:
            cells = [tried["variant"], str(len(tried["refused"]))]
            for ratio in RATIOS:
                for part in ("valid", "best"):
                    one = tried["by_ratio"][str(ratio)][part]
                    cells.append(f"{percent(one['mean_error'], 2)}, {percent(one['coverage'], 0)}")
            for ratio in (RATIOS[0], RATIOS[-1]):
                cells.append(loss(tried["by_ratio"][str(ratio)]["regret_nats"]["mean"], 3))
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def _table(path: Path, group: str | None) -> RunsTable:
    table = read_runs(path)
    return table if group is None else table.only(group)


def main() -> int:
    """Fit, predict, score, print and store."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", type=Path)
    parser.add_argument("--group")
    parser.add_argument("--variants", action="store_true", help="other laws and settings too")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--name", default="backtest", help="of the result's files")
    arguments = parser.parse_args()
    table = _table(arguments.runs, arguments.group)
    variants = VARIANTS if arguments.variants else (CHOSEN,)
    words = [Path(word).name if word == str(arguments.runs) else word for word in sys.argv[1:]]
    results = [backtest(table.points, variant) for variant in variants]
    for tried in results[1:]:
        del tried["rows"]  # the means are enough of what was not chosen
    outcome = {
        **about(" ".join(["python -m benchmarks.backtest", *words])),
        "table": arguments.runs.name,
        "n_runs": len(table.points),
        "n_shapes": len({one.n_params for one in table.points}),
        "n_budgets": len(budgets_of(table.points)),
        "results": results,
    }
    text = to_markdown(outcome)
    write_results(arguments.out, arguments.name, outcome, text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
