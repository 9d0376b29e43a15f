"""Options that several commands share, and the console. Loads nothing heavy."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from rich.console import Console

    WholeNumber = click.ParamType[int]
else:  # click before 8.2 has no type parameter
    WholeNumber = click.ParamType

F = TypeVar("F", bound=Callable[..., Any])


class Flops(WholeNumber):
    """A whole number of FLOPs, such as 1e15 or 250_000."""

    name = "FLOPS"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The exact whole number."""
        if isinstance(value, int):
            return value
        try:
            number = Decimal(str(value).replace("_", ""))
        except InvalidOperation:
            self.fail(f"{value!r} is not a number; expected FLOPs such as 1e15", param, ctx)
        if not number.is_finite() or not 1 <= number <= Decimal(10) ** 30:
            self.fail(f"{value!r} is out of range; expected 1 to 1e30 FLOPs", param, ctx)
        return int(number)


def storage_options(command: F) -> F:
    """--storage and --study."""
    for option in (
        click.option("--study", metavar="NAME", help="Study name [default: the newest]."),
        click.option(
            "--storage",
            default="budgetsweep.db",
            show_default=True,
            metavar="FILE|URL",
            help="SQLite file or SQLAlchemy URL of the database.",
        ),
    ):
        command = option(command)
    return command


def data_options(command: F) -> F:
    """--data, --val-data, --text-field, --tokenizer, --cache-dir."""
    for option in (
        click.option(
            "--cache-dir",
            type=click.Path(file_okay=False, path_type=Path),
            help="Where prepared tokens lie [default: the user's cache].",
        ),
        click.option(
            "--tokenizer",
            metavar="NAME",
            help="gpt2, r50k_base, p50k_base or bytes [default: gpt2; bytes for demo].",
        ),
        click.option(
            "--text-field", default="text", show_default=True, help="Field with the text."
        ),
        click.option("--val-data", metavar="PATH", help="Separate validation text."),
        click.option(
            "--data",
            "source",
            default="c4",
            show_default=True,
            metavar="SOURCE",
            help="c4, demo, hub:owner/name[:config] or a path (text, jsonl, csv, parquet, npz).",
        ),
    ):
        command = option(command)
    return command


def model_options(command: F) -> F:
    """--n-head, --tokenizer, for weights without a config.yaml."""
    for option in (
        click.option(
            "--tokenizer", metavar="NAME", help="The model's tokenizer, where no file tells."
        ),
        click.option(
            "--n-head", type=click.IntRange(1), help="The model's heads, where no file tells."
        ),
    ):
        command = option(command)
    return command


set_option = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Set a run setting, such as num_evals=3 or model_config.p_dropout=0.1 (repeatable).",
)
points_from_option = click.option(
    "--points-from",
    multiple=True,
    metavar="STUDY",
    help="An earlier study of this database on the same text: its complete runs are points of the "
    "law too (repeatable).",
)
yes_option = click.option("--yes", "-y", is_flag=True, help="Do not ask before a very long run.")
device_option = click.option(
    "--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N or mps."
)


def new_console() -> Console:
    """The console that a command prints to."""
    from rich.console import Console

    console = Console(soft_wrap=True)
    if not console.is_terminal:
        console.width = 200  # files and pipes have no edge to wrap at
    return console
