"""Data prepared ahead of time, and the list of what is prepared: `data prepare`, `data info`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from budgetsweep.cli.options import cache_dir_option, data_options, json_option

if TYPE_CHECKING:
    from rich.console import Console

    from trainer.data.config import DataConfig
    from trainer.data.shards.tokens import TokenData


def data_settings(
    source: str, validation: str | None, text_field: str, tokenizer: str | None
) -> tuple[DataConfig, str]:
    """What the data options say: the data and their tokenizer."""
    from budgetsweep.config import parse
    from trainer.data.config import DataConfig
    from trainer.data.sources import source_class

    data = {"source": source, "validation": validation, "text_field": text_field}
    config = parse(DataConfig, data, "--data")
    return config, tokenizer or source_class(source).default_tokenizer


@click.group("data")
def data_command() -> None:
    """Prepare data and list what is prepared."""


@data_command.command("prepare")
@click.argument("source")
@data_options
@click.option(
    "--train-tokens", type=click.IntRange(1), help="Training tokens wanted [default: all]."
)
@click.option("--val-tokens", type=click.IntRange(1), help="Validation tokens wanted.")
@click.option("--workers", type=click.IntRange(1, 256), help="Tokenising threads.")
def prepare_command(
    source: str, validation: str | None, text_field: str,
    tokenizer: str | None, **limits: Any,
) -> None:  # fmt: skip
    """Tokenise data into the cache (searches and promotions do this by themselves).

    SOURCE is what --data of the other commands takes: c4, demo, hub:owner/name[:config] or a path.
    A .csv with the columns headline, title, text (WikiHow) gives pairs for an encoder-decoder.
    """
    from budgetsweep.cli.display import new_console, prepare_display
    from trainer.data.cache import prepared_info
    from trainer.data.prepare import prepare

    config, encoding = data_settings(source, validation, text_field, tokenizer)
    console = new_console()
    data = prepare(config, encoding, on_progress=prepare_display(console), **limits)
    console.print(
        f"{data.description}: {len(data.train):,} training and {len(data.val):,} "
        f"validation tokens in {data.folder}"
    )
    info = prepared_info(data.folder)
    if info.documents:  # the course's file does not say
        console.print(
            f"{info.documents:,} {'pairs' if info.pairs else 'documents'}; left out: "
            f"{info.bad_records:,} bad, {info.dropped_documents:,} dropped"
        )
    if data.pairs:
        _print_pairs(data, console)


def _print_pairs(data: TokenData, console: Console) -> None:
    import numpy as np

    from trainer.data.pairs import PairIndex

    for name, tokens in (("training", data.train), ("validation", data.val)):
        index = PairIndex(tokens, data.eot)
        if not len(index):
            console.print(f"{name}: no whole pair")
            continue
        sides = zip(("source", "target"), index.lengths.T, strict=True)
        lengths = "; ".join(
            "{} of {:,.0f} tokens (median; 90 % within {:,.0f}, the longest {:,.0f})".format(
                side, *np.quantile(values, (0.5, 0.9, 1.0), method="inverted_cdf")
            )
            for side, values in sides
        )
        console.print(f"{name}: {len(index):,} pairs, {lengths}")


@data_command.command("info")
@cache_dir_option
@click.option("--verify", is_flag=True, help="Read everything and compare checksums.")
@json_option
def info_command(cache_dir: Path | None, verify: bool, as_json: bool) -> None:
    """List prepared token sets."""
    from dataclasses import asdict

    from budgetsweep.cli.display import columns, new_console
    from trainer.data.cache import list_prepared

    console = new_console()
    prepared = list_prepared(cache_dir, verify=verify)
    if as_json:
        console.print_json(data=[asdict(entry) for entry in prepared], default=str)
        return
    if not prepared:
        console.print("nothing is prepared yet; `budgetsweep data prepare` does it")
        return
    table = columns("source", "tokenizer", "train tokens", "val tokens", "documents", "left out",
                    "state", "folder")  # fmt: skip
    for entry in prepared:
        documents = f"{entry.documents:,} pairs" if entry.pairs else f"{entry.documents:,}"
        table.add_row(
            entry.source, entry.tokenizer_encoding, f"{entry.train_tokens:,}",
            f"{entry.val_tokens:,}", documents,
            f"{entry.bad_records:,} bad, {entry.dropped_documents:,} dropped",
            entry.state, str(entry.folder),
        )  # fmt: skip
    console.print(table)
