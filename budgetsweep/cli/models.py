"""The commands of a trained model: parse, call one function. Heavy imports stand inside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from budgetsweep.cli.options import device_option, model_options, new_console

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
    from budgetsweep.cli.model_files import evaluate_command

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
    from budgetsweep.cli.model_files import convert_command

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
    from budgetsweep.cli.model_files import generate_command

    generate_command(new_console(), **options)


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--data", "source", metavar="SOURCE", required=True,
    help="yelp_polarity, hub:owner/name (split test), or FILE.csv, .jsonl, .parquet.",
)  # fmt: skip
@click.option(
    "--words", default="negative,positive", show_default=True, metavar="NEG,POS",
    help="Two words, each one token with the space before it, which is added.",
)  # fmt: skip
@click.option(
    "--template", default=r"Here is a yelp review.\n{text}\nThis review is", show_default=True,
    metavar="TEXT", help=r"What the model reads; {text} is the review, \n a line end.",
)  # fmt: skip
@click.option(
    "--calibrate", is_flag=True,
    help="Judge by the median of p(positive) instead of 0.5; the table shows both.",
)  # fmt: skip
@click.option(
    "--limit", type=click.IntRange(0), default=1000, show_default=True,
    help="Reviews drawn; 0: all.",
)  # fmt: skip
@click.option("--seed", type=click.IntRange(0), default=42, show_default=True, help="Of the draw.")
@click.option(
    "--draw", type=click.Choice(["all", "fitting"]), default="all", show_default=True,
    help="From all reviews, then drop what does not fit; or from those that fit.",
)  # fmt: skip
@click.option("--text-field", default="text", show_default=True, help="Field with the review.")
@click.option("--label-field", default="label", show_default=True, help="Field with the label.")
@click.option(
    "--batch-size", type=click.IntRange(1), default=16, show_default=True, help="Reviews at once."
)
@click.option(
    "--out", type=click.Path(path_type=Path), default="classification", show_default=True,
    metavar="FOLDER", help="Folder to write.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="For scripts.")
@model_options
@device_option
def classify(**options: Any) -> None:
    """Classify reviews by the word that a trained model expects next.

    MODEL is a run's folder, a model.pt, the course's too, or a converted model. Labels are 0
    (negative) and 1 (positive), or 1 and 2.

    Writes classification.json, predictions.csv and histogram.png and .svg.
    """
    from budgetsweep.cli.classify import classify_command

    classify_command(new_console(), **options)


MODEL_COMMANDS = (evaluate, convert, generate, classify)
