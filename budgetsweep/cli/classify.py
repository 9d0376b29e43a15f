"""`budgetsweep classify`: zero-shot sentiment with a trained model, its table and its files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import click

from budgetsweep.cli.options import (
    FILE,
    check_writable,
    device_option,
    json_option,
    model_options,
    writing,
)
from budgetsweep.errors import ConfigError
from budgetsweep.formats import percent

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from trainer.sentiment.accuracy import Decision, Ranking
    from trainer.sentiment.classify import Prompts

FACTS, PREDICTIONS, FIGURE = "classification.json", "predictions.csv", "histogram"


class Outcome(NamedTuple):
    """What was measured."""

    prompts: Prompts
    probabilities: list[float]
    """(N,) p(positive)."""
    without: Decision
    """At the boundary 0.5."""
    calibrated: Decision
    """At the median of p(positive)."""
    predictions: tuple[list[int], list[int]]
    """(N,) each: without and with calibration."""
    ranking: Ranking
    majority_accuracy: float

    def answer(self, calibrate: bool) -> Decision:
        """The decision that was asked for."""
        return self.calibrated if calibrate else self.without


@click.command("classify")
@click.argument("model", type=FILE)
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
    "--out", type=FILE, default="classification", show_default=True,
    metavar="FOLDER", help="Folder to write.",
)  # fmt: skip
@json_option
@model_options
@device_option
def classify_command(
    model: Path, source: str, words: str, template: str, calibrate: bool, limit: int, seed: int,
    draw: Literal["all", "fitting"], text_field: str, label_field: str, batch_size: int, out: Path,
    as_json: bool, n_head: int | None, tokenizer: str | None, device: str,
) -> None:  # fmt: skip
    """Classify reviews by the word that a trained model expects next.

    MODEL is a run's folder, a model.pt, the course's too, or a converted model. Labels are 0
    (negative) and 1 (positive), or 1 and 2.

    Writes classification.json, predictions.csv and histogram.png and .svg.
    """
    check_writable(out, out)
    from dataclasses import asdict

    from budgetsweep.cli.display import new_console, work_display
    from trainer.data.tokenizers import load_tokenizer
    from trainer.export.formats import open_model
    from trainer.hardware.device import enough_memory, torch_device
    from trainer.sentiment.accuracy import RANDOM_ACCURACY
    from trainer.sentiment.classify import (
        TEXT,
        make_prompts,
        parse_template,
        parse_words,
        score_words,
        word_tokens,
    )
    from trainer.sentiment.labelled import read_labelled

    template = TEXT.join(parse_template(template))
    two = parse_words(words, template)
    loaded = open_model(model, n_head, tokenizer)
    if loaded.tokenizer is None:
        raise ConfigError(f"{loaded.path}: its tokenizer is not known: give --tokenizer")
    where = torch_device(device)
    encoding = load_tokenizer(loaded.tokenizer)
    shape = loaded.shape
    tokens = word_tokens(encoding, two, shape.n_vocab)
    data = read_labelled(source, text_field, label_field)
    prompts = make_prompts(
        data, template, encoding, shape.n_positions, shape.n_vocab,
        limit=limit or None, seed=seed, only_fitting=draw == "fitting",
    )  # fmt: skip
    console, quiet = new_console(), new_console(quiet=as_json)  # nothing but JSON goes to a script
    smaller = enough_memory(f"give a --batch-size below {batch_size}")
    progress = work_display(quiet, total=len(prompts.rows), verb="reading", unit="reviews")
    with smaller, progress as done:
        probabilities = score_words(
            loaded.model.to(where), where, encoding, prompts.texts, tokens, batch_size,
            on_progress=done,
        ).tolist()  # fmt: skip
    outcome = _measured(prompts, probabilities)
    facts = {
        "model": str(loaded.path), "tokenizer": loaded.tokenizer,
        "n_positions": shape.n_positions, "data": data.description,
        "data_checksum": data.checksum, "n_data": len(data), "limit": limit, "seed": seed,
        "draw": draw, "n_drawn": prompts.n_drawn, "n_dropped": prompts.n_dropped,
        "template": template, "words": list(two), "tokens": tokens, "calibrate": calibrate,
        "accuracy": outcome.answer(calibrate).accuracy, "n": len(prompts.labels),
        "n_negative": prompts.labels.count(0), "n_positive": prompts.labels.count(1),
        "random_accuracy": RANDOM_ACCURACY, "majority_accuracy": outcome.majority_accuracy,
        **asdict(outcome.ranking), "without_calibration": asdict(outcome.without),
        "with_calibration": asdict(outcome.calibrated),
    }  # fmt: skip
    _write_files(out, facts, outcome)
    if as_json:
        console.print_json(data=facts)
        return
    _print_outcome(console, facts, outcome)
    console.print(f"{out}: {FACTS}, {PREDICTIONS}, {FIGURE}.png, {FIGURE}.svg")


def _measured(prompts: Prompts, probabilities: list[float]) -> Outcome:
    """The decisions at both boundaries, and how good they are; of each prompt p(positive)."""
    import torch

    from model.classification import decide, decision_boundary
    from trainer.sentiment.accuracy import majority_accuracy, measure, rank

    column = torch.tensor(probabilities, dtype=torch.float64)
    boundaries = [decision_boundary(column, calibrate) for calibrate in (False, True)]
    without, calibrated = (decide(column, boundary) for boundary in boundaries)
    return Outcome(
        prompts=prompts,
        probabilities=probabilities,
        without=measure(prompts.labels, without, boundaries[0]),
        calibrated=measure(prompts.labels, calibrated, boundaries[1]),
        predictions=(without, calibrated),
        ranking=rank(prompts.labels, probabilities),
        majority_accuracy=majority_accuracy(prompts.labels),
    )


def _write_files(out: Path, facts: Mapping[str, Any], outcome: Outcome) -> None:
    """Write the four files; older ones stay until all new ones are complete."""
    import tempfile

    import numpy as np

    from budgetsweep.files import write_bytes_atomically, write_text_atomically
    from reports.figures.sentiment import p_positive_histogram
    from reports.style.theme import svg_and_png

    svg, png = svg_and_png(
        p_positive_histogram(
            np.array(outcome.prompts.labels), np.array(outcome.probabilities),
            outcome.calibrated.boundary, (outcome.without.accuracy, outcome.calibrated.accuracy),
        )
    )  # fmt: skip
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out, prefix=".classify.") as name:
            folder = Path(name)
            write_text_atomically(folder / PREDICTIONS, _predictions_csv(outcome))
            write_text_atomically(folder / f"{FIGURE}.svg", svg)
            write_bytes_atomically(folder / f"{FIGURE}.png", png)
            write_text_atomically(folder / FACTS, json.dumps(facts, indent=1) + "\n")
            for file in sorted(folder.iterdir(), key=lambda file: file.name == FACTS):
                file.replace(out / file.name)


def _predictions_csv(outcome: Outcome) -> str:
    """A line a review, in the order of the data set; `row` counts from 0."""
    columns = (outcome.prompts.rows, outcome.prompts.labels, outcome.probabilities)
    lines = ["row,label,p_positive,prediction,prediction_calibrated"]
    for row, label, p, plain, calibrated in zip(*columns, *outcome.predictions, strict=True):
        lines.append(f"{row},{label},{p!r},{plain},{calibrated}")
    return "\n".join(lines) + "\n"


def _print_outcome(console: Console, facts: Mapping[str, Any], outcome: Outcome) -> None:
    """The table, and what it says in a sentence."""
    prompts = outcome.prompts
    labels = prompts.labels
    drawn = f"{prompts.n_drawn:,} of {facts['n_data']:,} reviews of {facts['data']}"
    if prompts.n_drawn == facts["n_data"]:
        drawn = f"{prompts.n_drawn:,} reviews of {facts['data']}"
    fitting = prompts.n_drawn - prompts.n_dropped
    taken = f", the first {len(labels):,} of them" if len(labels) < fitting else ""
    console.print(
        f"{drawn} (seed {facts['seed']}), {prompts.n_dropped:,} dropped: longer with the template "
        f"than {facts['n_positions']} tokens; {fitting:,} fit{taken}: "
        f"{len(labels) - sum(labels):,} negative, {sum(labels):,} positive",
    )
    console.print(_table(console, outcome))
    console.print("confusion matrix: the last four columns, (true, predicted)")
    ranking = outcome.ranking
    if ranking.auc is not None:
        console.print(
            f"AUC {ranking.auc:.3f} (95 % {ranking.auc_ci95_low:.3f} to "
            f"{ranking.auc_ci95_high:.3f}; chance is 0.5, no boundary is needed)",
        )
    console.print(_verdict(outcome, facts["calibrate"]))


def _verdict(outcome: Outcome, calibrate: bool) -> str:
    """Whether the accuracy beats that of naming the larger class, in one line."""
    decision = outcome.answer(calibrate)
    words = {
        "above": "beats the majority class: its 95 % interval lies above",
        "below": "is worse than the majority class: its 95 % interval lies below",
        "not distinguishable": "does not significantly beat the majority class: its 95 % interval "
        "contains",
    }[decision.against_majority]
    return (
        f"{percent(decision.accuracy, 1)} {'with' if calibrate else 'without'} calibration {words} "
        f"{percent(outcome.majority_accuracy, 1)} ({_interval(decision)})"
    )


def _interval(decision: Decision) -> str:
    return f"{percent(decision.ci95_low, 1)} to {percent(decision.ci95_high, 1)}"


def _table(console: Console, outcome: Outcome) -> Table:
    from budgetsweep.cli.display import number_table

    confusion = [
        f"({true}, {predicted})" for true in ("neg", "pos") for predicted in ("neg", "pos")
    ]
    table = number_table(console, "", "accuracy", "95 % interval", "boundary", *confusion)
    labels = outcome.prompts.labels
    larger = "positive" if 2 * sum(labels) > len(labels) else "negative"
    table.add_row("random (expected)", percent(0.5, 1))
    table.add_row(f"majority class ({larger})", percent(outcome.majority_accuracy, 1))
    for name, one in (
        ("without calibration", outcome.without),
        ("with calibration (median)", outcome.calibrated),
    ):
        counts = (one.true_negative, one.false_positive, one.false_negative, one.true_positive)
        table.add_row(
            name, percent(one.accuracy, 1), _interval(one), f"{one.boundary:.4g}",
            *(f"{count:,}" for count in counts),
        )  # fmt: skip
    return table
