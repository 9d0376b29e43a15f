"""`budgetsweep fit`: a scaling law of a table of runs, its predictions and figures. No torch."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from budgetsweep.cli.options import FILE, FOLDER, Flops, json_option, writing
from budgetsweep.errors import DataError
from budgetsweep.formats import count, flops, loss, percent, times

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console
    from rich.table import Table

    from studies.scaling.fit_data import FitPoint
    from studies.scaling.result import LossPrediction, ScalingFit
    from studies.scaling.runs_csv import RunsTable

LEVEL = 0.8
MULTIPLES = (1, 10, 100)
"""Of the largest FLOPs fitted, predicted where none are asked for."""
FIT_FILE = "fit.json"
ABOVE_0 = click.FloatRange(0, 1e18, min_open=True)


class Asked(NamedTuple):
    """One prediction: what was asked, and the answer."""

    flops: float
    """6 · N · D."""
    n_params: float
    n_params_low: float | None
    """Ends of the interval of the best size; None: the size was asked for."""
    n_params_high: float | None
    tokens: float
    prediction: LossPrediction

    def as_data(self) -> dict[str, Any]:
        """Plain data, as `--json` prints it."""
        own = {name: value for name, value in self._asdict().items() if value is not None}
        predicted = asdict(own.pop("prediction"))
        extrapolation = predicted.pop("extrapolation")
        perplexity = math.exp(self.prediction.loss_nats)
        return {**own, **predicted, "perplexity": perplexity, **extrapolation}


@click.command("fit")
@click.argument("runs", type=FILE)
@click.option(
    "--predict-flops", type=Flops(), multiple=True, metavar="C",
    help="Best size and its loss at so many FLOPs [default: 1, 10 and 100 times the largest] "
    "(repeatable).",
)  # fmt: skip
@click.option(
    "--predict", type=(ABOVE_0, ABOVE_0), multiple=True, metavar="N D",
    help="Loss of N parameters on D tokens, such as 25e6 6e8 (repeatable).",
)  # fmt: skip
@click.option(
    "--max-flops", type=Flops(), metavar="C",
    help="Fit only runs of at most so many FLOPs, and score the prediction of the others.",
)  # fmt: skip
@click.option("--group", metavar="NAME", help="Of a table with several data sets: which one.")
@click.option(
    "--entropy-nats", type=ABOVE_0, metavar="E",
    help="Loss that no model gets below, if you know better than 1.8 nats per GPT-2 token.",
)  # fmt: skip
@click.option("--out", type=FOLDER, help="Folder for fit.json and figures.")
@json_option
def fit_command(
    runs: Path, predict_flops: Sequence[int], predict: Sequence[tuple[float, float]],
    max_flops: int | None, group: str | None, entropy_nats: float | None, out: Path | None,
    as_json: bool,
) -> None:  # fmt: skip
    """Fit a scaling law to a table of finished runs and predict runs that were not made.

    RUNS is a CSV file, plain or gzipped, with the columns n_params, tokens (or train_flops in
    place of one of them: C = 6·N·D) and val_loss_nats; where known max_lr, batch_tokens, group.
    """
    from budgetsweep.cli.display import new_console
    from studies.scaling.fit import fit
    from studies.scaling.held_out_score import score
    from studies.scaling.priors import Priors
    from studies.scaling.runs_csv import read_runs

    table = read_runs(runs)
    if group is not None:
        table = table.only(group)
    fitted, later = _divided(table, max_flops)
    found = fit(fitted, priors=Priors(entropy_nats=entropy_nats))
    scored = score(found, later) if later else None
    asked = _asked(found, predict_flops, predict)
    law = _intervals(found)
    data = {
        "runs": table.name,
        "notes": list(table.notes),
        "law": law,
        "level": LEVEL,
        "predictions": [one.as_data() for one in asked],
        "held_out": None if scored is None else asdict(scored),
        "fit": found.to_dict(),
    }
    files = [] if out is None else _write(out, data, table, found, asked)
    console = new_console()
    if as_json:
        console.print_json(data=data)
        return
    _print(console, table, found, law, asked)
    if scored is not None:
        console.print()
        for sentence in scored.sentences():
            console.print(sentence)
    if files:
        console.print(f"{', '.join(files)} in {out}")


def _divided(table: RunsTable, max_flops: int | None) -> tuple[list[FitPoint], list[FitPoint]]:
    """The runs to fit, and those above --max-flops."""
    limit = math.inf if max_flops is None else 1.001 * max_flops
    runs = list(zip(table.points, table.flops, strict=True))
    if limit < min(table.flops):
        raise DataError(
            f"{table.name}: no run of at most {flops(max_flops)} FLOPs; the smallest has "
            f"{flops(min(table.flops))}"
        )
    return [p for p, cost in runs if cost <= limit], [p for p, cost in runs if cost > limit]


def _asked(
    found: ScalingFit, flops: Sequence[int], runs: Sequence[tuple[float, float]]
) -> list[Asked]:
    """Predictions for what was asked; 1, 10 and 100 times the largest FLOPs where nothing was."""
    from studies.scaling.fit_data import FLOPS_PER_PARAM_TOKEN

    budgets: Sequence[float] = flops
    if not flops and not runs:
        budgets = [multiple * found.flops_range[1] for multiple in MULTIPLES]
    asked = []
    for budget in budgets:
        n_params = found.best_params(budget)
        tokens = budget / FLOPS_PER_PARAM_TOKEN / n_params
        interval = found.best_params_interval(budget)
        predicted = found.predict(n_params, tokens)
        asked.append(Asked(budget, n_params, *interval, tokens, predicted))
    for n_params, tokens in runs:
        predicted = found.predict(n_params, tokens)
        budget = FLOPS_PER_PARAM_TOKEN * n_params * tokens
        asked.append(Asked(budget, n_params, None, None, tokens, predicted))
    return asked


def _intervals(found: ScalingFit) -> dict[str, dict[str, float]]:
    """The law's constants: most probable value, low and high of 80 %."""
    import numpy as np

    from studies.scaling.likelihood import law_of

    drawn = [asdict(law_of(theta, found.centre)) for theta in found.draws]
    intervals = {}
    for name, value in asdict(found.law).items():
        low, high = np.quantile([one[name] for one in drawn], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        intervals[name] = {"value": float(value), "low": float(low), "high": float(high)}
    return intervals


def _write(
    out: Path, data: Mapping[str, Any], table: RunsTable, found: ScalingFit,
    asked: Sequence[Asked],
) -> list[str]:  # fmt: skip
    """fit.json and the figures; the names of the files."""
    from budgetsweep.files import write_bytes_atomically, write_text_atomically
    from reports.figures.scaling import compute_frontier, isoflop_fit
    from reports.style.theme import Chart, svg_and_png

    points = _frame(table)
    prediction = asked[0].as_data() if len(asked) == 1 else None
    charts = isoflop_fit(points, found), compute_frontier(points, found, prediction)
    drawn = [(c.name, *svg_and_png(c)) for c in charts if isinstance(c, Chart)]
    files = [FIT_FILE]
    with writing(out):
        write_text_atomically(out / FIT_FILE, json.dumps(data, indent=2) + "\n")
        for name, svg, png in drawn:
            write_text_atomically(out / f"{name}.svg", svg)
            write_bytes_atomically(out / f"{name}.png", png)
            files += [f"{name}.svg", f"{name}.png"]
    return files


def _frame(table: RunsTable) -> pd.DataFrame:
    """Runs as the figures take them; what is not known is NaN."""
    import pandas as pd

    names = ["n_params", "tokens", "loss_nats", "max_lr", "batch_tokens"]
    frame = pd.DataFrame(map(asdict, table.points))[names].astype(float)
    return frame.rename(columns={"loss_nats": "val_loss_nats"})


def _print(
    console: Console, table: RunsTable, found: ScalingFit, law: Mapping[str, Mapping[str, float]],
    asked: Sequence[Asked],
) -> None:  # fmt: skip
    from budgetsweep.cli.display import number_table, visible

    console.print(
        f"{visible(table.name, console)}: {found.n_points} runs of {found.n_shapes} sizes at "
        f"{found.n_budgets} budgets, {_range(found.flops_range, flops)} FLOPs, "
        f"{_range(found.n_params_range, count)} parameters, {_range(found.tokens_range, count)} "
        "tokens"
    )
    for note in table.notes:
        console.print(note)
    console.print("\nL(N, D) = E + [(A / N^alpha)^(1/delta) + (B / D^beta)^(1/delta)]^delta")
    constants = number_table(console, "", "value", "80 % interval")
    for name, one in law.items():
        constants.add_row(name, f"{one['value']:.4g}", f"{one['low']:.3g} to {one['high']:.3g}")
    console.print(constants)
    console.print(f"a run scatters by {percent(found.noise)} of its loss around the law")
    for what, is_known, cost in (
        ("learning rate", found.knows_lr, found.k_lr_nats),
        ("batch size", found.knows_batch, found.k_batch_nats),
    ):
        if is_known:
            console.print(f"a {what} a factor of e from the optimum costs {loss(cost, 3)} nats")
    if not (found.knows_lr or found.knows_batch):
        console.print(
            "the table has no learning rates and batch sizes: all runs are taken as well tuned"
        )
    console.print()
    console.print(_predictions_table(console, asked))
    for warning in _warnings(asked):
        console.print(warning)


def _warnings(asked: Sequence[Asked]) -> list[str]:
    """What a reader of the predictions must know."""
    from studies.scaling.result import UNDERTRAINED_BELOW

    said = []
    beyond = [one.prediction.extrapolation for one in asked]
    far = max(one.flops_ratio for one in beyond)
    if far > 100.5:
        said.append(
            f"{times(far)} beyond the largest FLOPs fitted: the interval was checked to ×128 only"
        )
    outside = []
    if any(one.n_params_outside for one in beyond):
        outside.append("parameters")
    if any(one.tokens_outside for one in beyond):
        outside.append("tokens")
    if outside:
        said.append(f"outside the range fitted: {' and '.join(outside)} (marked *)")
    if any(one.tokens < UNDERTRAINED_BELOW * one.n_params for one in asked):
        said.append(
            f"under {UNDERTRAINED_BELOW:g} tokens per parameter the law fits badly; the interval "
            "is wider there"
        )
    return said


def _predictions_table(console: Console, asked: Sequence[Asked]) -> Table:
    from budgetsweep.cli.display import number_table

    table = number_table(
        console, "FLOPs", "over fitted", "parameters", "80 %", "tokens", "per parameter", "loss",
        "80 %", "perplexity",
    )  # fmt: skip
    for one in asked:
        predicted, beyond = one.prediction, one.prediction.extrapolation
        best = "–"
        if one.n_params_low is not None and one.n_params_high is not None:
            best = f"{count(one.n_params_low)} to {count(one.n_params_high)}"
        table.add_row(
            flops(one.flops), times(beyond.flops_ratio),
            count(one.n_params) + ("*" if beyond.n_params_outside else ""), best,
            count(one.tokens) + ("*" if beyond.tokens_outside else ""),
            count(one.tokens / one.n_params),
            loss(predicted.loss_nats, 3),
            f"{loss(predicted.low_nats, 3)} to {loss(predicted.high_nats, 3)}",
            f"{math.exp(predicted.loss_nats):.3g}",
        )  # fmt: skip
    return table


def _range(limits: tuple[float, float], show: Callable[[float], str]) -> str:
    return f"{show(limits[0])} to {show(limits[1])}"
