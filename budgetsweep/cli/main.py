"""The program: finds the command that is asked for, and turns a mistake into one line."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

import click

from budgetsweep import __version__
from budgetsweep.errors import UserError

MODULES = {
    "search": "search", "promote": "promote", "report": "report", "status": "status",
    "diagnose": "status", "export": "report", "train": "train", "flops": "flops",
    "evaluate": "evaluate", "convert": "evaluate", "generate": "generate", "classify": "classify",
    "fit": "scaling", "data": "data",
}  # fmt: skip
"""Which file of this package has `NAME_command`, in the order of `--help`."""


class Commands(click.Group):
    """Loads a command's file when the command is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names."""
        return [*MODULES, *super().list_commands(ctx)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of a name."""
        if cmd_name not in MODULES:
            return super().get_command(ctx, cmd_name)
        module = importlib.import_module(f"budgetsweep.cli.{MODULES[cmd_name]}")
        command: click.Command = getattr(module, f"{cmd_name}_command")
        return command


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="budgetsweep")
def cli() -> None:
    """Find the best language model that a compute budget can buy.

    \b
    budgetsweep search --budget 1e15     try configurations, none above the budget
    budgetsweep promote --scale 100      train the best shape with 100 times the FLOPs
    budgetsweep report                   explain it all in one HTML file
    """  # noqa: D301 - click looks for the control character itself


@cli.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the shell's completion script: `budgetsweep completion bash >> ~/.bashrc`."""
    from click.shell_completion import get_completion_class

    completion_class = get_completion_class(shell)
    assert completion_class is not None
    click.echo(completion_class(cli, {}, "budgetsweep", "_BUDGETSWEEP_COMPLETE").source())


def main(words: Sequence[str] | None = None) -> None:
    """Entry point: a user's mistake is one line on stderr and exit code 2."""
    try:
        cli.main(words, prog_name="budgetsweep")
    except UserError as error:
        line = " ".join(str(error).split())
        click.echo(f"Error: {line}", err=True)
        sys.exit(2)
