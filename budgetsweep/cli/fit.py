"""What `budgetsweep fit` does: read runs, fit, predict, print, draw. No torch."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from budgetsweep.config import write_bytes_atomically, write_text_atomically
from budgetsweep.errors import ConfigError, DataError
from reports.style.formats import count, loss, percent, power, short, times
from studies.scaling.fit import fit
from studies.scaling.fit_data import FLOPS_PER_PARAM_TOKEN
from studies.scaling.held_out_score import Score, score
from studies.scaling.likelihood import law_of
from studies.scaling.priors import Priors
from studies.scaling.result import LEVEL, UNDERTRAINED_BELOW, LossPrediction, ScalingFit
from studies.scaling.runs_csv import RunsTable, read_runs

if TYPE_CHECKING:
    import pandas as pd

MULTIPLES = (1, 10, 100)
"""Of the largest FLOPs fitted, predicted where none are asked for."""
FIT_FILE = "fit.json"


@dataclass(frozen=True)
class Asked:
    """One prediction: what was asked, and the answer."""

    n_params: float
    n_params_low: float | None
    """Ends of the interval of the best size; None: the size was asked for."""
    n_params_high: float | None
    tokens: float
    prediction: LossPrediction

    @property
    def flops(self) -> float:
        """6 · N · D."""
        return FLOPS_PER_PARAM_TOKEN * self.n_params * self.tokens

    def as_data(self) -> dict[str, Any]:
        """Plain data, as `--json` prints it."""
        told = asdict(self.prediction)
        extrapolation = told.pop("extrapolation")
        own = {
            name: value
            for name, value in vars(self).items()
            if name != "prediction" and value is not None
        }
        perplexity = math.exp(self.prediction.loss_nats)
        return {"flops": self.flops, **own, **told, "perplexity": perplexity, **extrapolation}


def fit_command(
    console: Console,
    runs: Path,
    *,
    predict_flops: Sequence[int] = (),
    predict: Sequence[tuple[float, float]] = (),
    max_flops: int | None = None,
    group: str | None = None,
    entropy_nats: float | None = None,
    out: Path | None = None,
    as_json: bool = False,
) -> None:
    """Fit a table of runs, print what it says, write fit.json and figures.

    Raises:
        DataError: the table cannot be read.
        FitRefused: its runs are too few or too alike.
        ConfigError: `out` cannot be written.
    """
    table = read_runs(runs)
    if group is not None:
        table = table.only(group)
    fitted, later = _divided(table, max_flops)
    found = fit([table.points[i] for i in fitted], priors=Priors(entropy_nats=entropy_nats))
    scored = score(found, [table.points[i] for i in later]) if later else None
    asked = _asked(found, predict_flops, predict)
    data = _as_data(table, found, asked, scored)
    if out is not None:
        files = _write(out, data, table, found, asked)
    if as_json:
        console.print_json(json.dumps(data))
        return
    _print(console, table, found, asked, scored)
    if out is not None:
        console.print(Text(f"{', '.join(files)} in {out}"), highlight=False)


def _divided(table: RunsTable, max_flops: int | None) -> tuple[list[int], list[int]]:
    """Indices of the runs to fit and of those above --max-flops."""
    every = range(len(table.points))
    if max_flops is None:
        return list(every), []
    fitted = [i for i in every if table.flops[i] <= 1.001 * max_flops]
    if not fitted:
        raise DataError(
            f"{table.name}: no run of at most {power(max_flops)} FLOPs; the smallest has "
            f"{power(min(table.flops))}"
        )
    return fitted, [i for i in every if i not in set(fitted)]


def _asked(
    found: ScalingFit, flops: Sequence[int], runs: Sequence[tuple[float, float]]
) -> list[Asked]:
    """Predictions for what was asked; 1, 10 and 100 times the largest FLOPs where nothing was."""
    budgets: list[float] = [float(one) for one in flops]
    if not budgets and not runs:
        budgets = [multiple * found.flops_range[1] for multiple in MULTIPLES]
    asked = []
    for budget in budgets:
        n_params = found.best_params(budget)
        low, high = found.best_params_interval(budget, LEVEL)
        tokens = budget / FLOPS_PER_PARAM_TOKEN / n_params
        asked.append(Asked(n_params, low, high, tokens, found.predict(n_params, tokens)))
    for n_params, tokens in runs:
        asked.append(Asked(n_params, None, None, tokens, found.predict(n_params, tokens)))
    return asked


def intervals(found: ScalingFit) -> dict[str, tuple[float, float, float]]:
    """The law's constants: most probable value, low and high of 80 %."""
    drawn = [asdict(law_of(theta, found.centre)) for theta in found.draws]
    told = {}
    for name, value in asdict(found.law).items():
        low, high = np.quantile([one[name] for one in drawn], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        told[name] = (float(value), float(low), float(high))
    return told


def _as_data(
    table: RunsTable, found: ScalingFit, asked: Sequence[Asked], scored: Score | None
) -> dict[str, Any]:
    return {
        "runs": table.name,
        "notes": list(table.notes),
        "law": {
            name: {"value": value, "low": low, "high": high}
            for name, (value, low, high) in intervals(found).items()
        },
        "level": LEVEL,
        "predictions": [one.as_data() for one in asked],
        "held_out": None if scored is None else asdict(scored),
        "fit": found.to_dict(),
    }


def _write(
    out: Path, data: Mapping[str, Any], table: RunsTable, found: ScalingFit,
    asked: Sequence[Asked],
) -> list[str]:  # fmt: skip
    """fit.json and the figures; the names of the files."""
    from reports.figures.scaling import compute_frontier, isoflop_fit, lr_optimum, regret
    from reports.style.theme import Chart, on_paper, svg_and_png

    points, plain = frame(table), found.to_dict()
    small = found.flops_range[1]
    large = max([one.flops for one in asked if one.flops > 2 * small], default=10 * small)
    single = asked[0] if len(asked) == 1 else None
    prediction = None
    if single is not None:
        told = single.prediction
        prediction = {
            "n_params": single.n_params, "tokens": single.tokens, "loss_nats": told.loss_nats,
            "low_nats": told.low_nats, "high_nats": told.high_nats,
        }  # fmt: skip
    charts = (
        isoflop_fit(points, plain),
        compute_frontier(points, plain, prediction),
        regret(points, plain, small, large),
        lr_optimum(points, plain),
    )
    drawn = [(c.name, *svg_and_png(c)) for c in charts if isinstance(c, Chart)]
    files = [FIT_FILE]
    try:
        write_text_atomically(out / FIT_FILE, json.dumps(data, indent=2) + "\n")
        for name, svg, png in drawn:
            write_text_atomically(out / f"{name}.svg", on_paper(svg))
            write_bytes_atomically(out / f"{name}.png", png)
            files += [f"{name}.svg", f"{name}.png"]
    except OSError as error:
        raise ConfigError(f"--out {out}: cannot be written ({error.strerror})") from error
    return files


def frame(table: RunsTable) -> pd.DataFrame:
    """Runs as the figures take them; what is not known is NaN."""
    import pandas as pd

    names = ("n_params", "tokens", "val_loss_nats", "max_lr", "batch_tokens")
    rows = [
        (one.n_params, one.tokens, one.loss_nats, one.max_lr, one.batch_tokens)
        for one in table.points
    ]
    return pd.DataFrame(rows, columns=list(names)).astype(float)


def _print(
    console: Console, table: RunsTable, found: ScalingFit, asked: Sequence[Asked],
    scored: Score | None,
) -> None:  # fmt: skip
    def line(text: str) -> None:
        console.print(Text(text), highlight=False, soft_wrap=True)

    line(
        f"{_clean(table.name)}: {found.n_points} runs of {found.n_shapes} sizes at "
        f"{found.n_budgets} budgets, {_range(found.flops_range, power3)} FLOPs, "
        f"{_range(found.n_params_range, short)} parameters, {_range(found.tokens_range, short)} "
        "tokens"
    )
    for note in table.notes:
        line(note)
    line("")
    line("L(N, D) = E + [(A / N^alpha)^(1/delta) + (B / D^beta)^(1/delta)]^delta")
    console.print(_law_table(console, found))
    line(f"a run scatters by {percent(found.noise)} of its loss around the law")
    for sentence in tuning_sentences(found):
        line(sentence)
    line("")
    console.print(_predictions_table(console, asked))
    for warning in warnings(asked):
        line(warning)
    if scored is not None:
        line("")
        for sentence in scored.sentences():
            line(sentence)


def tuning_sentences(found: ScalingFit) -> list[str]:
    """What the fit says of learning rate and batch, where they are known."""
    said = []
    off = "a factor of e from the optimum costs"
    if found.knows_lr:
        said.append(f"a learning rate {off} {loss(found.k_lr_nats, 3)} nats")
    if found.knows_batch:
        said.append(f"a batch {off} {loss(found.k_batch_nats, 3)} nats")
    if not said:
        said.append("learning rates and batches are unknown: all runs are taken as well tuned")
    return said


def warnings(asked: Sequence[Asked]) -> list[str]:
    """What a reader of the predictions must know."""
    said = []
    far = max(one.prediction.extrapolation.flops_ratio for one in asked)
    if far > 100.5:
        said.append(
            f"{times(far)} beyond the largest FLOPs fitted: the interval was checked to ×128 only"
        )
    outside = [
        name
        for name, is_outside in (
            ("parameters", any(one.prediction.extrapolation.n_params_outside for one in asked)),
            ("tokens", any(one.prediction.extrapolation.tokens_outside for one in asked)),
        )
        if is_outside
    ]
    if outside:
        said.append(f"outside the range fitted: {' and '.join(outside)} (marked *)")
    if any(one.tokens < UNDERTRAINED_BELOW * one.n_params for one in asked):
        said.append(
            f"under {UNDERTRAINED_BELOW:g} tokens per parameter the law holds badly; the interval "
            "is wider there"
        )
    return said


def _law_table(console: Console, found: ScalingFit) -> Table:
    table = _empty_table(console)
    for head in ("", "value", "80 % interval"):
        table.add_column(head, justify="right" if head else "left")
    for name, (value, low, high) in intervals(found).items():
        table.add_row(name, f"{value:.4g}", f"{low:.3g} to {high:.3g}")
    return table


def _predictions_table(console: Console, asked: Sequence[Asked]) -> Table:
    table = _empty_table(console)
    for head in (
        "FLOPs", "over fitted", "parameters", "80 %", "tokens", "per parameter", "loss", "80 %",
        "perplexity",
    ):  # fmt: skip
        table.add_column(head, justify="right")
    for one in asked:
        told, beyond = one.prediction, one.prediction.extrapolation
        best = "–"
        if one.n_params_low is not None and one.n_params_high is not None:
            best = f"{short(one.n_params_low)} to {short(one.n_params_high)}"
        per_param = one.tokens / one.n_params
        table.add_row(
            power(one.flops, 3), times(beyond.flops_ratio),
            short(one.n_params) + ("*" if beyond.n_params_outside else ""), best,
            short(one.tokens) + ("*" if beyond.tokens_outside else ""),
            count(per_param) if per_param >= 10 else f"{per_param:.2g}", loss(told.loss_nats, 3),
            f"{loss(told.low_nats, 3)} to {loss(told.high_nats, 3)}",
            f"{math.exp(told.loss_nats):.3g}",
        )  # fmt: skip
    return table


def _empty_table(console: Console) -> Table:
    return Table(box=box.ROUNDED) if console.is_terminal else Table(box=None, pad_edge=False)


def power3(value: float) -> str:
    """`1.25e16`."""
    return power(value, 3)


def _range(limits: tuple[float, float], show: Any) -> str:
    return f"{show(limits[0])} to {show(limits[1])}"


def _clean(name: str) -> str:
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in name)
