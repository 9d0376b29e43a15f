"""Text prepared ahead of time, and the list of what is prepared: `data prepare`, `data info`."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from budgetsweep.cli.display import PrepareDisplay
from trainer.data.config import DataConfig

if TYPE_CHECKING:
    from trainer.data.shards.tokens import TokenData


def prepare_command(
    config: DataConfig,
    tokenizer: str,
    console: Console,
    *,
    train_tokens: int | None,
    val_tokens: int | None,
    cache_dir: Path | None,
    workers: int | None,
) -> None:
    """Tokenise and say what there is."""
    from trainer.data.prepare import prepare

    data = prepare(
        config, tokenizer, train_tokens=train_tokens, val_tokens=val_tokens, cache_dir=cache_dir,
        workers=workers, on_progress=PrepareDisplay(console),
    )  # fmt: skip
    console.print(
        f"{escape(data.description)}: {len(data.train):,} training and {len(data.val):,} "
        f"validation tokens in {data.folder}",
        highlight=False,
    )
    _print_left_out(data, console)
    if data.pairs:
        _print_pairs(data, console)


def _print_left_out(data: TokenData, console: Console) -> None:
    from trainer.data.prepare import prepared_info

    info = prepared_info(data.folder)
    what = "pairs" if info.pairs else "documents"
    if info.documents:  # the course's file does not say
        console.print(
            f"{info.documents:,} {what}; left out: {info.bad_records:,} bad, "
            f"{info.dropped_documents:,} dropped",
            highlight=False,
        )


def _print_pairs(data: TokenData, console: Console) -> None:
    import numpy as np

    from trainer.data.pairs import PairIndex

    for name, tokens in (("training", data.train), ("validation", data.val)):
        index = PairIndex(tokens, data.eot)
        if not len(index):
            console.print(f"{name}: no whole pair", highlight=False)
            continue
        sides = (("source", index.source_lengths), ("target", index.target_lengths))
        lengths = "; ".join(
            "{} of {:,.0f} tokens (median; 90 % within {:,.0f}, the longest {:,.0f})".format(
                side, *np.quantile(values, (0.5, 0.9, 1.0), method="inverted_cdf")
            )
            for side, values in sides
        )
        console.print(f"{name}: {len(index):,} pairs, {lengths}", highlight=False)


def info_command(console: Console, cache_dir: Path | None, *, verify: bool, as_json: bool) -> None:
    """List prepared token sets."""
    from trainer.data.prepare import list_prepared

    prepared = list_prepared(cache_dir, verify=verify)
    if as_json:
        rows = [{k: str(v) if isinstance(v, Path) else v for k, v in dataclasses.asdict(p).items()}
                for p in prepared]  # fmt: skip
        console.print_json(json.dumps(rows))
        return
    if not prepared:
        console.print("nothing is prepared yet; `budgetsweep data prepare` does it")
        return
    table = Table("source", "tokenizer", "train tokens", "val tokens", "documents",
                  "left out", "state", "folder", box=None, pad_edge=False)  # fmt: skip
    for entry in prepared:
        documents = f"{entry.documents:,} pairs" if entry.pairs else f"{entry.documents:,}"
        table.add_row(
            escape(entry.source), entry.tokenizer_encoding, f"{entry.train_tokens:,}",
            f"{entry.val_tokens:,}", documents,
            f"{entry.bad_records:,} bad, {entry.dropped_documents:,} dropped",
            entry.state, str(entry.folder),
        )  # fmt: skip
    console.print(table)
