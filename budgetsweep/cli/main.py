"""The program: finds the command that is asked for, and turns a mistake into one line."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

import click

from budgetsweep import __version__
from budgetsweep.errors import UserError

COMMANDS = {
    "search": ("search", "Try configurations within a budget, or continue."),
    "promote": ("promote", "Train the final run with a multiple of the budget."),
    "report": ("report", "Explain a study: HTML, Markdown, figures, tables."),
    "status": ("status", "Show trials, the best so far, FLOPs spent, refusals."),
    "diagnose": ("status", "Detect what is wrong with a run's learning curve."),
    "export": ("report", "Write a study's space and runs as YAML and CSV."),
    "train": ("train", "Train one configuration from a YAML file."),
    "flops": ("flops", "Explain what a configuration costs."),
    "evaluate": ("evaluate", "Measure the loss of a trained model."),
    "convert": ("evaluate", "Write a trained model in another format."),
    "generate": ("generate", "Let a trained model continue texts."),
    "classify": ("classify", "Classify reviews with a trained model."),
    "fit": ("scaling", "Fit a scaling law to a table of runs, and predict."),
    "data": ("data", "Prepare data and list what is prepared."),
}
"""Which file of this package has `NAME_command`, and its line in `--help`, which loads none."""


class Commands(click.Group):
    """Loads a command's file when the command is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names."""
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of a name."""
        del ctx
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"budgetsweep.cli.{COMMANDS[cmd_name][0]}")
        command: click.Command = getattr(module, f"{cmd_name}_command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """One line a command."""
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


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
    from trainer.hardware.environment import prepare_environment

    prepare_environment()


def main(words: Sequence[str] | None = None) -> None:
    """Entry point: a user's mistake is one line on stderr and exit code 2."""
    try:
        cli.main(words, prog_name="budgetsweep")
    except UserError as error:
        line = " ".join(str(error).split())
        click.echo(f"Error: {line}", err=True)
        sys.exit(2)
