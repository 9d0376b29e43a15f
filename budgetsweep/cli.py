"""The command line: parse, call one function, print.

Heavy imports stand inside the commands, so that `--help` and `--version` never load torch.
"""

from __future__ import annotations

import functools
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from budgetsweep import __version__
from budgetsweep.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

    from trainer.config import DataConfig

    WholeNumber = click.ParamType[int]
else:  # click before 8.2 has no type parameter
    WholeNumber = click.ParamType

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
SAMPLER_NAMES = ("tpe", "gp", "random", "qmc", "grid")
CONVENTION_NAMES = ("nanogpt", "matmul", "mac")
FORMAT_NAMES = ("safetensors", "gpt2", "pt")

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
            help="c4, demo, hub:owner/name[:config] or a path (text, jsonl, parquet, npz, folder).",
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
yes_option = click.option("--yes", "-y", is_flag=True, help="Do not ask before a very long run.")
device_option = click.option(
    "--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N or mps."
)


def _console() -> Console:
    from rich.console import Console

    console = Console(soft_wrap=True)
    if not console.is_terminal:
        console.width = 200  # files and pipes have no edge to wrap at
    return console


def _data_config(
    source: str, val_data: str | None, text_field: str, tokenizer: str | None
) -> tuple[DataConfig, str]:
    from budgetsweep.config import parse
    from trainer.config import DataConfig

    data = {"source": source, "validation": val_data, "text_field": text_field}
    config = parse(DataConfig, data, "--data")
    return config, tokenizer or ("bytes" if source == "demo" else "gpt2")


@click.group(context_settings=CONTEXT)
@click.version_option(__version__, prog_name="budgetsweep")
def cli() -> None:
    r"""Find the best language model that a compute budget can buy.

    \b
    budgetsweep search --budget 1e15     try configurations, none above the budget
    budgetsweep promote --scale 100      train the best shape with 100 times the FLOPs
    budgetsweep report                   explain it all in one HTML file
    """


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
@click.option("--sampler", type=click.Choice(SAMPLER_NAMES), help="[default: tpe]")
@click.option(
    "--seed", type=click.IntRange(0, 2**32 - 1), help="Seed of proposals and runs [default: 0]."
)
@click.option(
    "--trials", type=click.IntRange(1), default=32, show_default=True, help="Trials in all."
)
@click.option("--hours", type=float, help="Stop after so many hours.")
@click.option("--total-flops", type=Flops(), help="Stop before the study spends more than this.")
@click.option(
    "--workers", type=click.IntRange(1, 256), default=1, show_default=True,
    help="Trials at a time: one a GPU, or a CPU's cores divided.",
)  # fmt: skip
@click.option(
    "--threads", type=click.IntRange(1, 1024),
    help="Arithmetic threads of a worker [default: the cores divided among the workers].",
)  # fmt: skip
@click.option("--prune", is_flag=True, help="Stop trials below the median at equal budget shares.")
@click.option(
    "--keep", type=click.Choice(["best", "all", "none"]), default="best", show_default=True,
    help="Whose model.pt stays on disk.",
)  # fmt: skip
@click.option(
    "--runs-dir", type=click.Path(file_okay=False, path_type=Path), help="Folder for runs."
)
@click.option("--dry-run", is_flag=True, help="Sample 10,000 proposals; train nothing.")
@data_options
@storage_options
@set_option
@device_option
@yes_option
def search(dry_run: bool, yes: bool, **options: Any) -> None:
    """Search for the best configuration within a budget, or continue a search.

    The same command again continues: finished trials stay, interrupted ones resume.
    """
    from budgetsweep.commands import dry_run_command, search_command, search_settings

    settings = search_settings(**options)
    if dry_run:
        dry_run_command(settings, _console())
        return
    with Signals().caught() as signals:
        finished = search_command(settings, _console(), signals, yes=yes)
    if not finished:
        sys.exit(130 if signals.should_stop() else 0)


@cli.command()
@click.option(
    "--scale", type=float, default=100.0, show_default=True, help="Multiple of the budget."
)
@click.option("--trial", type=click.IntRange(0), help="Trial to promote [default: the best].")
@click.option(
    "--output-dir", type=click.Path(file_okay=False, path_type=Path), help="Folder for model.pt …"
)
@click.option(
    "--runs-dir", type=click.Path(file_okay=False, path_type=Path), help="Folder for runs."
)
@click.option(
    "--cache-dir", type=click.Path(file_okay=False, path_type=Path), help="Where tokens lie."
)
@storage_options
@set_option
@device_option
@yes_option
def promote(yes: bool, **options: Any) -> None:
    """Train the best trial's shape with --scale times its FLOPs, never more."""
    from budgetsweep.commands import promote_command
    from studies.promote import PromoteSettings

    settings = PromoteSettings(**{**options, "overrides": tuple(options["overrides"])})
    with Signals().caught() as signals:
        finished = promote_command(settings, _console(), signals, yes=yes)
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
    from studies.storage import storage_url

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
    from budgetsweep.commands import status_command

    status_command(storage, study, _console(), as_json=as_json)


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
    from budgetsweep.commands import run_config, train_command

    run = run_config(config, budget, source, overrides)
    with Signals().caught() as signals:
        finished = train_command(run, _console(), signals, cache_dir=cache_dir, threads=threads)
    if not finished:
        sys.exit(130 if signals.should_stop() else 1)


@cli.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--data", "source", metavar="FILE",
    help="Held-out text or token file, measured whole [default: the run's own validation text].",
)  # fmt: skip
@click.option("--text-field", metavar="NAME", help="Field of a JSON document with the text.")
@click.option("--seq-len", type=click.IntRange(2), help="Tokens in a window [default: the run's].")
@click.option("--val-tokens", type=click.IntRange(1), help="Only the first so many tokens.")
@model_options
@click.option(
    "--drop-last", is_flag=True, help="Leave out the shorter last batch, as the course does."
)
@click.option("--cache-dir", type=click.Path(file_okay=False, path_type=Path), help="Token cache.")
@click.option("--json", "as_json", is_flag=True, help="For scripts.")
@device_option
def evaluate(**options: Any) -> None:
    """Measure loss, perplexity and bits per byte of a trained model.

    MODEL is a run's folder, a model.pt, the course's too, or a converted model. A FILE is text,
    JSON lines, parquet, the course's .npz (its array val), .npy or .tok; c4, demo, hub:owner/name
    and folders stand for their validation part.
    """
    from budgetsweep.model_commands import evaluate_command

    evaluate_command(_console(), **options)


@cli.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--to", required=True, type=click.Choice(FORMAT_NAMES),
    help="gpt2: for transformers' GPT2LMHeadModel; pt: model.pt.",
)  # fmt: skip
@click.option(
    "--output-dir", "-o", required=True, type=click.Path(file_okay=False, path_type=Path),
    help="New folder to write.",
)  # fmt: skip
@model_options
def convert(**options: Any) -> None:
    """Write a trained model as safetensors or for transformers, or one of those as model.pt.

    MODEL is a run's folder, a model.pt, the course's too, or a converted model.
    """
    from budgetsweep.model_commands import convert_command

    convert_command(_console(), **options)


@cli.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--prefixes", type=click.Path(path_type=Path), required=True, metavar="FILE",
    help='One {"prefix": "..."} a line.',
)  # fmt: skip
@click.option(
    "--temperature", "temperatures", type=float, multiple=True, default=(0.0,), show_default=True,
    help="0: always the most likely token (repeatable: side by side).",
)  # fmt: skip
@click.option(
    "--max-new-tokens", type=click.IntRange(1), default=64, show_default=True,
    help="Most tokens of a continuation.",
)  # fmt: skip
@click.option("--top-k", type=int, help="Draw from the k most likely tokens only.")
@click.option(
    "--top-p", type=float, help="Draw from the fewest tokens that make up this probability."
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the draws.")
@click.option(
    "--ignore-eot", is_flag=True, help="Write on behind an end-of-text token, as the course does."
)
@click.option(
    "--batch-size", type=click.IntRange(1), default=16, show_default=True, help="Prefixes at once."
)
@click.option(
    "--out", type=click.Path(path_type=Path), default="generation.jsonl", show_default=True,
    metavar="FILE", help="File to write.",
)  # fmt: skip
@model_options
@device_option
def generate(**options: Any) -> None:
    """Let a trained model continue texts, at several temperatures side by side.

    MODEL is a run's folder, a model.pt, the course's too, or a converted model.

    A context longer than the model's n_positions loses its older half: the newer half is read
    again from position 0. Of a longer prefix the last n_positions tokens count.
    """
    from budgetsweep.model_commands import generate_command

    generate_command(_console(), **options)


@cli.command()
@click.argument("run", required=False, type=click.Path(path_type=Path))
@click.option("--trial", type=click.IntRange(0), help="A trial of a study, instead of RUN.")
@click.option("--promotion", type=click.IntRange(0), help="A promotion of a study.")
@click.option("--json", "as_json", is_flag=True, help="For scripts.")
@storage_options
def diagnose(**options: Any) -> None:
    """Say from its learning curve what is wrong with a run, and how many steps suffice.

    RUN is a run's folder, or anybody's CSV or .jsonl file with step, train_loss and, where known,
    val_loss, lr, grad_norm, tokens.
    """
    from budgetsweep.diagnosing import diagnose_command

    diagnose_command(_console(), **options)


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
    from budgetsweep.commands import explain_command, run_config

    run = run_config(config, budget, None, overrides)
    explain_command(run, _console(), measure=not no_measure, as_json=as_json)


@cli.group()
def data() -> None:
    """Prepare text and list what is prepared."""


@data.command("prepare")
@data_options
@click.option(
    "--train-tokens", type=click.IntRange(1), help="Training tokens wanted [default: all]."
)
@click.option("--val-tokens", type=click.IntRange(1), help="Validation tokens wanted.")
@click.option("--workers", type=click.IntRange(1, 256), help="Tokenising threads.")
def data_prepare(
    source: str, val_data: str | None, text_field: str, tokenizer: str | None,
    cache_dir: Path | None, train_tokens: int | None, val_tokens: int | None, workers: int | None,
) -> None:  # fmt: skip
    """Tokenise text into the cache (searches and promotions do this by themselves)."""
    from budgetsweep.commands import prepare_command

    config, encoding = _data_config(source, val_data, text_field, tokenizer)
    prepare_command(
        config, encoding, _console(), train_tokens=train_tokens, val_tokens=val_tokens,
        cache_dir=cache_dir, workers=workers,
    )  # fmt: skip


@data.command("info")
@click.option("--cache-dir", type=click.Path(file_okay=False, path_type=Path), help="Token cache.")
@click.option("--verify", is_flag=True, help="Read everything and compare checksums.")
@click.option("--json", "as_json", is_flag=True, help="For scripts.")
def data_info(cache_dir: Path | None, verify: bool, as_json: bool) -> None:
    """List prepared token sets."""
    from budgetsweep.commands import info_command

    info_command(_console(), cache_dir, verify=verify, as_json=as_json)


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
    from budgetsweep.commands import export_command

    export_command(storage, study, output_dir, _console())


@cli.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the shell's completion script: `budgetsweep completion bash >> ~/.bashrc`."""
    from click.shell_completion import get_completion_class

    completion_class = get_completion_class(shell)
    assert completion_class is not None
    click.echo(completion_class(cli, {}, "budgetsweep", "_BUDGETSWEEP_COMPLETE").source())


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
