"""The commands of a trained model: parse, call one function. Heavy imports stand inside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from budgetsweep.cli_options import device_option, model_options, new_console

FORMAT_NAMES = ("safetensors", "gpt2", "pt")


@click.command()
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

    evaluate_command(new_console(), **options)


@click.command()
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

    convert_command(new_console(), **options)


@click.command()
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

    generate_command(new_console(), **options)


MODEL_COMMANDS = (evaluate, convert, generate)
