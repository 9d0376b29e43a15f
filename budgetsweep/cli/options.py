"""Options that several commands share, and their headings in `--help`. Loads nothing heavy."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from budgetsweep.errors import ConfigError

if TYPE_CHECKING:
    WholeNumber = click.ParamType[int]
else:  # click before 8.2 has no type parameter
    WholeNumber = click.ParamType

F = TypeVar("F", bound=Callable[..., Any])

FILE = click.Path(path_type=Path)
FOLDER = click.Path(file_okay=False, path_type=Path)


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


class GroupedCommand(click.Command):
    """A command whose --help lists its options under headings."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Options in the order of their headings; those without one come last."""
        headings: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None:
                headings.setdefault(getattr(param, "heading", "Other"), []).append(record)
        for heading, records in headings.items():
            with formatter.section(heading):
                formatter.write_dl(records)


def options(*decorators: Callable[[Any], Any], heading: str | None = None) -> Callable[[F], F]:
    """Several options as one decorator, in this order; `heading` is for a `GroupedCommand`."""

    def decorate(command: F) -> F:
        n_before = len(getattr(command, "__click_params__", ()))
        for decorator in reversed(decorators):
            command = decorator(command)
        if heading is not None:
            for param in vars(command)["__click_params__"][n_before:]:
                param.heading = heading
        return command

    return decorate


storage_options = options(
    click.option(
        "--storage", default="budgetsweep.db", show_default=True, metavar="FILE|URL",
        help="SQLite file or SQLAlchemy URL of the database.",
    ),
    click.option("--study", metavar="NAME", help="Study name [default: the newest]."),
)  # fmt: skip
cache_dir_option = click.option(
    "--cache-dir", type=FOLDER, help="Where tokens are cached [default: the user's cache]."
)
source_option = click.option(
    "--data", "source", default="c4", show_default=True, metavar="SOURCE",
    help="c4, demo, hub:owner/name[:config] or a path (text, jsonl, csv, parquet, npz).",
)  # fmt: skip
data_options = options(
    click.option("--val-data", "validation", metavar="PATH", help="Separate validation data."),
    click.option("--text-field", default="text", show_default=True, help="Field with the text."),
    click.option(
        "--tokenizer", metavar="NAME",
        help="gpt2, r50k_base, p50k_base or bytes [default: gpt2; bytes for demo].",
    ),
    cache_dir_option,
)  # fmt: skip
model_options = options(
    click.option("--n-head", type=click.IntRange(1), help="Heads, where no config.yaml says it."),
    click.option("--tokenizer", metavar="NAME", help="Tokenizer, where no config.yaml says it."),
)
set_option = click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE",
    help="Set a run setting, such as num_evals=3 or model_config.p_dropout=0.1 (repeatable).",
)  # fmt: skip
points_from_option = click.option(
    "--points-from", multiple=True, metavar="STUDY",
    help="A prior study of this database on the same data: its complete runs are data points of "
    "the fit too (repeatable).",
)  # fmt: skip
threads_option = click.option(
    "--threads", type=click.IntRange(1, 1024), help="Arithmetic threads of a process "
    "[default: the cores, divided among the workers].",
)  # fmt: skip
runs_dir_option = click.option("--runs-dir", type=FOLDER, help="Folder for runs.")
json_option = click.option("--json", "as_json", is_flag=True, help="For scripts.")
yes_option = click.option("--yes", "-y", is_flag=True, help="Do not ask before a very long run.")
device_option = click.option(
    "--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N or mps."
)


def output_dir_option(default: str) -> Callable[[F], F]:
    """--output-dir, -o."""
    return click.option(
        "--output-dir", "-o", default=default, show_default=True, type=FOLDER,
        help="Folder to write.",
    )  # fmt: skip


def check_writable(out: Path, folder: Path) -> None:
    """Find out before the work whether what --out names can be written into `folder`.

    Raises:
        ConfigError: it cannot; nothing has been made.
    """
    there = folder
    while not there.exists() and there != there.parent:
        there = there.parent
    if not there.is_dir():
        raise ConfigError(f"--out {out}: {there} is a file; expected the name of a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ConfigError(f"--out {out}: {there} cannot be written to; give another name")


@contextmanager
def writing(out: Path, option: str = "--out") -> Iterator[None]:
    """Errors of writing what an option names, in one line."""
    try:
        yield
    except OSError as error:
        raise ConfigError(f"{option} {out}: cannot be written ({error.strerror})") from error
