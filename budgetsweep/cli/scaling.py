"""`budgetsweep fit`: a scaling law of a table of runs, its predictions and figures. No torch."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from budgetsweep.cli.options import FILE, FOLDER, Flops, json_option
from budgetsweep.errors import ConfigError, DataError
from budgetsweep.formats import count, flops

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console
    from rich.table import Table

    from studies.scaling.held_out_score import Score
    from studies.scaling.result import LossPrediction, ScalingFit
    from studies.scaling.runs_csv import RunsTable

    AnyType = click.ParamType[Any]
else:  # click before 8.2 has no type parameter
    AnyType = click.ParamType

LEVEL = 0.8
MULTIPLES = (1, 10, 100)
"""Of the largest FLOPs fitted, predicted where none are asked for."""
FIT_FILE = "fit.json"


class FlopsList(AnyType):
    """Numbers of FLOPs with commas between: 1e17,1e18."""

    name = "FLOPS"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        """The exact whole numbers."""
        if isinstance(value, tuple):
            return value
        return tuple(Flops().convert(one.strip(), param, ctx) for one in str(value).split(","))


class SizeAndTokens(AnyType):
    """Parameters and tokens with a comma between: 25e6,6e8."""

    name = "N,D"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[float, float]:
        """Both as numbers above 0."""
        if isinstance(value, tuple):
            return value
        try:
            n_params, tokens = (float(one.replace("_", "")) for one in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r}: expected parameters and tokens such as 25e6,6e8", param, ctx)
        if not (0 < n_params < 1e15 and 0 < tokens < 1e18):
            self.fail(f"{value!r}: expected parameters and tokens above 0", param, ctx)
        return n_params, tokens


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
        from dataclasses import asdict

        own = {name: value for name, value in self._asdict().items() if value is not None}
        predicted = asdict(own.pop("prediction"))
        extrapolation = predicted.pop("extrapolation")
        perplexity = math.exp(self.prediction.loss_nats)
        return {**own, **predicted, "perplexity": perplexity, **extrapolation}


@click.command("fit")
@click.argument("runs", type=FILE)
@click.option(
    "--predict-flops", type=FlopsList(), default=(), metavar="C[,C]",
    help="Best size and its loss at these FLOPs [default: 1, 10 and 100 times the largest].",
)  # fmt: skip
@click.option(
    "--predict", type=SizeAndTokens(), multiple=True,
    help="Loss of N parameters on D tokens. May be repeated.",
)  # fmt: skip
@click.option(
    "--max-flops", type=Flops(), metavar="C",
    help="Fit only runs of at most so many FLOPs, and score the prediction of the others.",
)  # fmt: skip
@click.option("--group", metavar="NAME", help="Of a table with several data sets: which one.")
@click.option(
    "--entropy-nats", type=click.FloatRange(min=0, min_open=True), metavar="E",
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
    from dataclasses import asdict

    from budgetsweep.cli.display import new_console
    from studies.scaling.fit import fit
    from studies.scaling.held_out_score import score
    from studies.scaling.priors import Priors
    from studies.scaling.runs_csv import read_runs

    table = read_runs(runs)
    if group is not None:
        table = table.only(group)
    fitted, later = _divided(table, max_flops)
    found = fit([table.points[i] for i in fitted], priors=Priors(entropy_nats=entropy_nats))
    scored = score(found, [table.points[i] for i in later]) if later else None
    asked = _asked(found, predict_flops, predict)
    data = {
        "runs": table.name,
        "notes": list(table.notes),
        "law": {
            name: {"value": value, "low": low, "high": high}
            for name, (value, low, high) in _intervals(found).items()
        },
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
    _print(console, table, found, asked, scored)
    if files:
        console.print(f"{', '.join(files)} in {out}")


def _divided(table: RunsTable, max_flops: int | None) -> tuple[list[int], list[int]]:
    """Indices of the runs to fit and of those above --max-flops."""
    every = range(len(table.points))
    if max_flops is None:
        return list(every), []
    fitted = [i for i in every if table.flops[i] <= 1.001 * max_flops]
    if not fitted:
        raise DataError(
            f"{table.name}: no run of at most {flops(max_flops)} FLOPs; the smallest has "
            f"{flops(min(table.flops))}"
        )
    return fitted, [i for i in every if i not in set(fitted)]


def _asked(
    found: ScalingFit, flops: Sequence[int], runs: Sequence[tuple[float, float]]
) -> list[Asked]:
    """Predictions for what was asked; 1, 10 and 100 times the largest FLOPs where nothing was."""
    from studies.scaling.fit_data import FLOPS_PER_PARAM_TOKEN

    budgets: list[float] = [float(one) for one in flops]
    if not budgets and not runs:
        budgets = [multiple * found.flops_range[1] for multiple in MULTIPLES]
    asked = []
    for budget in budgets:
        n_params = found.best_params(budget)
        low, high = found.best_params_interval(budget)
        tokens = budget / FLOPS_PER_PARAM_TOKEN / n_params
        predicted = found.predict(n_params, tokens)
        asked.append(Asked(budget, n_params, low, high, tokens, predicted))
    for n_params, tokens in runs:
        predicted = found.predict(n_params, tokens)
        budget = FLOPS_PER_PARAM_TOKEN * n_params * tokens
        asked.append(Asked(budget, n_params, None, None, tokens, predicted))
    return asked


def _intervals(found: ScalingFit) -> dict[str, tuple[float, float, float]]:
    """The law's constants: most probable value, low and high of 80 %."""
    from dataclasses import asdict

    import numpy as np

    from studies.scaling.likelihood import law_of

    drawn = [asdict(law_of(theta, found.centre)) for theta in found.draws]
    intervals = {}
    for name, value in asdict(found.law).items():
        low, high = np.quantile([one[name] for one in drawn], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        intervals[name] = (float(value), float(low), float(high))
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
    prediction = None
    if len(asked) == 1:
        predicted = asked[0].prediction
        prediction = {
            "n_params": asked[0].n_params, "tokens": asked[0].tokens,
            "loss_nats": predicted.loss_nats, "low_nats": predicted.low_nats,
            "high_nats": predicted.high_nats,
        }  # fmt: skip
    charts = isoflop_fit(points, found), compute_frontier(points, found, prediction)
    drawn = [(c.name, *svg_and_png(c)) for c in charts if isinstance(c, Chart)]
    files = [FIT_FILE]
    try:
        write_text_atomically(out / FIT_FILE, json.dumps(data, indent=2) + "\n")
        for name, svg, png in drawn:
            write_text_atomically(out / f"{name}.svg", svg)
            write_bytes_atomically(out / f"{name}.png", png)
            files += [f"{name}.svg", f"{name}.png"]
    except OSError as error:
        raise ConfigError(f"--out {out}: cannot be written ({error.strerror})") from error
    return files


def _frame(table: RunsTable) -> pd.DataFrame:
    """Runs as the figures take them; what is not known is NaN."""
    import pandas as pd

    rows = [
        (one.n_params, one.tokens, one.loss_nats, one.max_lr, one.batch_tokens)
        for one in table.points
    ]
    names = ["n_params", "tokens", "val_loss_nats", "max_lr", "batch_tokens"]
    return pd.DataFrame(rows, columns=names).astype(float)


def _print(
    console: Console, table: RunsTable, found: ScalingFit, asked: Sequence[Asked],
    scored: Score | None,
) -> None:  # fmt: skip
    from budgetsweep.cli.display import number_table
    from budgetsweep.formats import loss, percent

    name = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in table.name)
    console.print(
        f"{name}: {found.n_points} runs of {found.n_shapes} sizes at "
        f"{found.n_budgets} budgets, {_range(found.flops_range, flops)} FLOPs, "
        f"{_range(found.n_params_range, count)} parameters, {_range(found.tokens_range, count)} "
        "tokens"
    )
    for note in table.notes:
        console.print(note)
    console.print("\nL(N, D) = E + [(A / N^alpha)^(1/delta) + (B / D^beta)^(1/delta)]^delta")
    law = number_table(console, "", "value", "80 % interval")
    for name, (value, low, high) in _intervals(found).items():
        law.add_row(name, f"{value:.4g}", f"{low:.3g} to {high:.3g}")
    console.print(law)
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
    if scored is not None:
        console.print()
        for sentence in scored.sentences():
            console.print(sentence)


def _warnings(asked: Sequence[Asked]) -> list[str]:
    """What a reader of the predictions must know."""
    from budgetsweep.formats import times
    from studies.scaling.result import UNDERTRAINED_BELOW

    said = []
    beyond = [one.prediction.extrapolation for one in asked]
    far = max(one.flops_ratio for one in beyond)
    if far > 100.5:
        said.append(
            f"{times(far)} beyond the largest FLOPs fitted: the interval was checked to ×128 only"
        )
    outside = [
        name
        for name, is_outside in (
            ("parameters", any(one.n_params_outside for one in beyond)),
            ("tokens", any(one.tokens_outside for one in beyond)),
        )
        if is_outside
    ]
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
    from budgetsweep.formats import count as whole
    from budgetsweep.formats import loss, times

    table = number_table(
        console, "FLOPs", "over fitted", "parameters", "80 %", "tokens", "per parameter", "loss",
        "80 %", "perplexity",
    )  # fmt: skip
    for one in asked:
        predicted, beyond = one.prediction, one.prediction.extrapolation
        best = "–"
        if one.n_params_low is not None and one.n_params_high is not None:
            best = f"{count(one.n_params_low)} to {count(one.n_params_high)}"
        per_param = one.tokens / one.n_params
        table.add_row(
            flops(one.flops), times(beyond.flops_ratio),
            count(one.n_params) + ("*" if beyond.n_params_outside else ""), best,
            count(one.tokens) + ("*" if beyond.tokens_outside else ""),
            whole(per_param) if per_param >= 10 else f"{per_param:.2g}",
            loss(predicted.loss_nats, 3),
            f"{loss(predicted.low_nats, 3)} to {loss(predicted.high_nats, 3)}",
            f"{math.exp(predicted.loss_nats):.3g}",
        )  # fmt: skip
    return table


def _range(limits: tuple[float, float], show: Callable[[float], str]) -> str:
    return f"{show(limits[0])} to {show(limits[1])}"
