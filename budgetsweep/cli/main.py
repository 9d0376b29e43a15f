"""The command line: parse, call one function, print.

Heavy imports stand inside the commands, so that `--help` and `--version` never load torch.
"""

from __future__ import annotations

import functools
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from budgetsweep import __version__
from budgetsweep.cli.models import MODEL_COMMANDS
from budgetsweep.cli.options import (
    Flops,
    data_options,
    device_option,
    new_console,
    points_from_option,
    set_option,
    storage_options,
    yes_option,
)
from budgetsweep.cli.scaling import fit
from budgetsweep.errors import UserError

if TYPE_CHECKING:
    from trainer.data.config import DataConfig

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
SAMPLER_NAMES = ("tpe", "gp", "random", "qmc", "grid", "law")
CONVENTION_NAMES = ("nanogpt", "matmul", "mac")
WORLD_NAMES = ("porian2024-refinedweb", "hoffmann2022", "besiroglu2024")


class Signals:
    """Ctrl-C (or SIGTERM) once: stop after saving. Twice: stop now."""

    def __init__(self) -> None:
        self.count = 0

    def should_stop(self) -> bool:
        """Whether a signal has come."""
        return self.count >= 1

    def should_kill(self) -> bool:
        """Whether a second one has."""
        return self.count >= 2

    def _handle(self, number: int, frame: object) -> None:
        del number, frame
        self.count += 1
        if self.count == 1:
            click.echo("\nfinishing the checkpoint; once more to stop at once", err=True)

    @contextmanager
    def caught(self) -> Iterator[Signals]:
        """Catch the signals within the block."""
        names = (signal.SIGINT, signal.SIGTERM)
        before = {name: signal.signal(name, self._handle) for name in names}
        try:
            yield self
        finally:
            for name, handler in before.items():
                signal.signal(name, handler)


def _data_config(
    source: str, val_data: str | None, text_field: str, tokenizer: str | None
) -> tuple[DataConfig, str]:
    from budgetsweep.config import parse
    from trainer.data.config import DataConfig

    data = {"source": source, "validation": val_data, "text_field": text_field}
    config = parse(DataConfig, data, "--data")
    return config, tokenizer or ("bytes" if source == "demo" else "gpt2")


@click.group(context_settings=CONTEXT)
@click.version_option(__version__, prog_name="budgetsweep")
def cli() -> None:
    """Find the best language model that a compute budget can buy.

    \b
    budgetsweep search --budget 1e15     try configurations, none above the budget
    budgetsweep promote --scale 100      train the best shape with 100 times the FLOPs
    budgetsweep report                   explain it all in one HTML file
    """  # noqa: D301 - click looks for the control character itself


@cli.command()
@click.option("--budget", type=Flops(), help="Training FLOPs a trial [default: 1e15].")
@click.option(
    "--convention", type=click.Choice(CONVENTION_NAMES), help="How FLOPs count [default: nanogpt]."
)
@click.option(
    "--space",
    "space_file",
    type=click.Path(path_type=Path),
    help="YAML file with `parameters:` [default: built in, fits the budget].",
)
@click.option("--sampler", type=click.Choice(SAMPLER_NAMES), help="[default: law]")
@click.option(
    "--seed", type=click.IntRange(0, 2**32 - 1), help="Seed of proposals and runs [default: 0]."
)
@click.option(
    "--trials", type=click.IntRange(1), default=32, show_default=True, help="Trials in all."
)
@click.option("--hours", type=float, help="Stop after so many hours.")
@click.option("--total-flops", type=Flops(), help="Stop before the study spends more than this.")
@click.option(
    "--workers", type=click.IntRange(1, 256),
    help="Trials at a time: spread over the GPUs, or a CPU's cores divided [default: 1].",
)  # fmt: skip
@click.option(
    "--trials-per-gpu", type=click.IntRange(1, 64), metavar="N",
    help="Trials at a time on each GPU, in place of --workers.",
)  # fmt: skip
@click.option(
    "--threads", type=click.IntRange(1, 1024),
    help="Arithmetic threads of a worker [default: the cores divided among the workers].",
)  # fmt: skip
@click.option(
    "--rungs", metavar="R,R,…",
    help="Budgets of the runs as multiples of --budget: a law of the loss needs several; 1 looks "
    "for the best at the budget alone [default: 0.1,0.3,1 with --sampler law and 12 trials].",
)  # fmt: skip
@click.option(
    "--for-scale",
    type=float,
    help="Search for the best at so many times the budget, by its predicted loss [default: 100 "
    "with the default rungs].",
)
@click.option("--prune", is_flag=True, help="Stop trials below the median at equal budget shares.")
@click.option(
    "--keep", type=click.Choice(["best", "all", "none"]), default="best", show_default=True,
    help="Whose model.pt stays on disk.",
)  # fmt: skip
@click.option(
    "--runs-dir", type=click.Path(file_okay=False, path_type=Path), help="Folder for runs."
)
@click.option("--dry-run", is_flag=True, help="Sample 10,000 proposals; train nothing.")
@click.option(
    "--simulate", is_flag=False, flag_value=WORLD_NAMES[0], default=None, metavar="[WORLD]",
    help="Train nothing: losses come from a published scaling law. WORLD is one of "
    f"{', '.join(WORLD_NAMES)} [the first], or drawn-7 (any number): constants drawn at random.",
)  # fmt: skip
@click.option(
    "--replay", type=click.Path(path_type=Path), metavar="RUNS.csv",
    help="Train nothing: losses are those of a table of finished runs, sizes the ones in it.",
)  # fmt: skip
@points_from_option
@data_options
@storage_options
@set_option
@device_option
@yes_option
def search(dry_run: bool, yes: bool, **options: Any) -> None:
    """Search for the best configuration within a budget, or continue a search.

    The same command again continues: finished trials stay, interrupted ones resume.
    """
    from budgetsweep.cli.search import dry_run_command, search_command, search_settings

    settings = search_settings(**options)
    if dry_run:
        dry_run_command(settings, new_console())
        return
    with Signals().caught() as signals:
        finished = search_command(settings, new_console(), signals, yes=yes)
    if not finished:
        sys.exit(130 if signals.should_stop() else 0)


@cli.command()
@click.option(
    "--scale", type=float, default=100.0, show_default=True, help="Multiple of the budget."
)
@click.option("--trial", type=click.IntRange(0), help="Trial to promote.")
@click.option(
    "--select", type=click.Choice(["measured", "predicted"]),
    help="The trial that measured best, or whose shape is predicted best at the larger budget "
    "[default: predicted, where the trials carry a prediction].",
)  # fmt: skip
@click.option(
    "--output-dir", type=click.Path(file_okay=False, path_type=Path), help="Folder for model.pt …"
)
@click.option(
    "--runs-dir", type=click.Path(file_okay=False, path_type=Path), help="Folder for runs."
)
@click.option(
    "--cache-dir", type=click.Path(file_okay=False, path_type=Path), help="Where tokens lie."
)
@points_from_option
@storage_options
@set_option
@device_option
@yes_option
def promote(yes: bool, **options: Any) -> None:
    """Train a trial's shape with --scale times the search's FLOPs, never more."""
    from budgetsweep.cli.promote import promote_command
    from studies.promotion.promote import PromoteSettings

    lists = {name: tuple(options[name]) for name in ("overrides", "points_from")}
    settings = PromoteSettings(**{**options, **lists})
    with Signals().caught() as signals:
        finished = promote_command(settings, new_console(), signals, yes=yes)
    if not finished:
        sys.exit(130 if signals.should_stop() else 1)


@cli.command()
@click.option(
    "--output-dir", "-o", default="report", show_default=True,
    type=click.Path(file_okay=False, path_type=Path), help="Folder to write.",
)  # fmt: skip
@storage_options
def report(output_dir: Path, storage: str, study: str | None) -> None:
    """Write the report: HTML, Markdown, figures, data.csv, best.yaml."""
    from reports.build import build_report
    from studies.database.connection import storage_url

    files = build_report(storage_url(storage), study, output_dir)
    for path in (files.html, files.markdown, files.data_csv, files.best_yaml):
        if path is not None:
            click.echo(str(path))
    click.echo(f"{len(files.figures)} figures in {output_dir / 'figures'}")


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="For scripts.")
@storage_options
def status(as_json: bool, storage: str, study: str | None) -> None:
    """Show trials, the best so far, FLOPs spent, and why proposals were rejected."""
    from budgetsweep.cli.commands import status_command

    status_command(storage, study, new_console(), as_json=as_json)


@cli.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.option("--budget", type=Flops(), help="Training FLOPs, for `num_training_steps: fill`.")
@click.option("--data", "source", metavar="SOURCE", help="Text, instead of the file's `data`.")
@click.option("--cache-dir", type=click.Path(file_okay=False, path_type=Path), help="Token cache.")
@click.option("--threads", type=click.IntRange(1, 1024), help="Arithmetic threads [default: all].")
@set_option
def train(
    config: Path, budget: int | None, source: str | None, cache_dir: Path | None,
    threads: int | None, overrides: tuple[str, ...],
) -> None:  # fmt: skip
    """Train one configuration from a YAML file, or continue it."""
    from budgetsweep.cli.commands import run_config, train_command

    run = run_config(config, budget, source, overrides)
    with Signals().caught() as signals:
        finished = train_command(run, new_console(), signals, cache_dir=cache_dir, threads=threads)
    if not finished:
        sys.exit(130 if signals.should_stop() else 1)


@cli.command()
@click.argument("run", required=False, type=click.Path(path_type=Path))
@click.option("--trial", type=click.IntRange(0), help="A trial of a study, instead of RUN.")
@click.option("--finalist", type=click.IntRange(0), help="A finalist of a study.")
@click.option("--promotion", type=click.IntRange(0), help="A promotion of a study.")
@click.option("--json", "as_json", is_flag=True, help="For scripts.")
@storage_options
def diagnose(**options: Any) -> None:
    """Say from its learning curve what is wrong with a run, and how many steps suffice.

    RUN is a run's folder, or anybody's CSV or .jsonl file with step, train_loss and, where known,
    val_loss, lr, grad_norm, tokens.
    """
    from budgetsweep.cli.diagnose import diagnose_command

    diagnose_command(new_console(), **options)


@cli.command("flops")
@click.argument("config", type=click.Path(path_type=Path))
@click.option("--budget", type=Flops(), help="Budget to compare with.")
@click.option("--no-measure", is_flag=True, help="Do not measure this device.")
@click.option("--json", "as_json", is_flag=True, help="For scripts.")
@set_option
def flops_command(
    config: Path, budget: int | None, no_measure: bool, as_json: bool, overrides: tuple[str, ...]
) -> None:
    """Explain what a configuration costs: parameters, FLOPs, tokens, memory, time."""
    from budgetsweep.cli.commands import explain_command, run_config

    run = run_config(config, budget, None, overrides)
    explain_command(run, new_console(), measure=not no_measure, as_json=as_json)


@cli.group()
def data() -> None:
    """Prepare text and list what is prepared."""


@data.command("prepare")
@click.argument("named", metavar="[SOURCE]", required=False)
@data_options
@click.option(
    "--train-tokens", type=click.IntRange(1), help="Training tokens wanted [default: all]."
)
@click.option("--val-tokens", type=click.IntRange(1), help="Validation tokens wanted.")
@click.option("--workers", type=click.IntRange(1, 256), help="Tokenising threads.")
def data_prepare(
    named: str | None, source: str, val_data: str | None, text_field: str, tokenizer: str | None,
    cache_dir: Path | None, train_tokens: int | None, val_tokens: int | None, workers: int | None,
) -> None:  # fmt: skip
    """Tokenise text into the cache (searches and promotions do this by themselves).

    SOURCE is what --data takes. A .csv with the columns headline, title, text (WikiHow) gives
    pairs for an encoder-decoder.
    """
    from budgetsweep.cli.data import prepare_command

    if named is not None:
        given = click.get_current_context().get_parameter_source("source")
        if given is not click.core.ParameterSource.DEFAULT:
            raise click.UsageError(f"give the source once: {named} or --data {source}")
        source = named
    config, encoding = _data_config(source, val_data, text_field, tokenizer)
    prepare_command(
        config, encoding, new_console(), train_tokens=train_tokens, val_tokens=val_tokens,
        cache_dir=cache_dir, workers=workers,
    )  # fmt: skip


@data.command("info")
@click.option("--cache-dir", type=click.Path(file_okay=False, path_type=Path), help="Token cache.")
@click.option("--verify", is_flag=True, help="Read everything and compare checksums.")
@click.option("--json", "as_json", is_flag=True, help="For scripts.")
def data_info(cache_dir: Path | None, verify: bool, as_json: bool) -> None:
    """List prepared token sets."""
    from budgetsweep.cli.data import info_command

    info_command(new_console(), cache_dir, verify=verify, as_json=as_json)


@cli.command()
@click.option(
    "--output-dir", "-o", default="export", show_default=True,
    type=click.Path(file_okay=False, path_type=Path), help="Folder to write.",
)  # fmt: skip
@storage_options
def export(output_dir: Path, storage: str, study: str | None) -> None:
    """Write space.yaml, best.yaml, each run's YAML and runs.csv, ready to run again.

    For a trained model in other formats see `convert`.
    """
    from budgetsweep.cli.commands import export_command

    export_command(storage, study, output_dir, new_console())


@cli.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the shell's completion script: `budgetsweep completion bash >> ~/.bashrc`."""
    from click.shell_completion import get_completion_class

    completion_class = get_completion_class(shell)
    assert completion_class is not None
    click.echo(completion_class(cli, {}, "budgetsweep", "_BUDGETSWEEP_COMPLETE").source())


for command in (*MODEL_COMMANDS, fit):
    cli.add_command(command)


@functools.wraps(cli.main)
def main(*args: Any, **kwargs: Any) -> Any:
    """Entry point: a user's mistake is one line on stderr and exit code 2."""
    try:
        return cli.main(*args, **kwargs)
    except UserError as error:
        line = " ".join(str(error).split())
        click.echo(f"Error: {line}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
