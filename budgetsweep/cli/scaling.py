"""The command that fits a scaling law: parse, call one function. Heavy imports stand inside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from budgetsweep.cli.options import Flops, new_console


class FlopsList(click.ParamType):  # type: ignore[type-arg, unused-ignore]
    """Numbers of FLOPs with commas between: 1e17,1e18."""

    name = "FLOPS"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        """The exact whole numbers."""
        if isinstance(value, tuple):
            return value
        return tuple(Flops().convert(one.strip(), param, ctx) for one in str(value).split(","))


class SizeAndTokens(click.ParamType):  # type: ignore[type-arg, unused-ignore]
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


@click.command()
@click.argument("runs", type=click.Path(path_type=Path))
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
    help="Loss that no model gets below, if you know better than 1.8 nats a GPT-2 token.",
)  # fmt: skip
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path),
    help="Folder for fit.json and figures.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="For scripts.")
def fit(runs: Path, **options: Any) -> None:
    """Fit a scaling law to a table of finished runs and predict runs that were not made.

    RUNS is a CSV file, plain or gzipped, with the columns n_params, tokens (or train_flops in
    place of one of them: C = 6·N·D) and val_loss_nats; where known max_lr, batch_tokens, group.
    """
    from budgetsweep.cli.fit import fit_command

    fit_command(new_console(), runs, **options)
