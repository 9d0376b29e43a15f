"""Tokenising against raw tiktoken, per core: `python -m benchmarks.tokenizing --source PATH`.

Side by side, in turns, on the same documents, in CPU seconds (which other work on the machine
disturbs less than the clock):

* raw: `Encoding.encode_ordinary_batch(texts, num_threads=1)`, and a loop over
  `Encoding.encode_to_numpy`, on texts that are in memory already;
* block: what a tokenising thread does: hash, split, encode, join, checksum and write shards;
* whole: `prepare` with one thread, from a .jsonl file on disk to shards and manifest: reading and
  parsing included, CPU seconds of all threads together.

Without --source the text is Python's standard library.
"""

from __future__ import annotations

import argparse
import functools
import json
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tiktoken

from benchmarks.common import ROOT, about, write_results
from trainer.data.blocks import (
    Block,
    SplitRule,
    choose_val_below,
    cut_blocks,
    encode_block,
)
from trainer.data.config import DataConfig
from trainer.data.prepare import prepare
from trainer.data.shards.tokens import write_shard
from trainer.data.sources import open_source
from trainer.data.tokenizers import load_tokenizer

TARGET = 0.9
RAW = ("encode_ordinary_batch", "encode_to_numpy")


def first_documents(source: str, n: int) -> list[str]:
    """The first `n` documents that are not empty."""
    texts: list[str] = []
    for record in open_source(source).records():
        texts += [text for text in record.documents if not text.isspace()]
        if len(texts) >= n:
            break
    return texts[:n]


def block_ways(name: str, folder: Path) -> dict[str, Callable[[Block], Any]]:
    """What is measured on one block of documents in memory."""
    encoding = tiktoken.get_encoding(name)
    tokenizer = load_tokenizer(name)
    rule = SplitRule(val_below=choose_val_below(None, 0))

    def ours(block: Block) -> None:
        made = encode_block(block, tokenizer, rule, True, threading.Event(), lambda *_: None)
        assert made is not None
        for split, ids in (("train", made.train), ("val", made.val)):
            write_shard(folder / f"{split}.tok", ids, tokenizer=name, split=split)

    return {
        "encode_ordinary_batch": lambda b: encoding.encode_ordinary_batch(
            [record.text for record in b.records], num_threads=1
        ),
        "encode_to_numpy": lambda b: [
            encoding.encode_to_numpy(record.text, disallowed_special=()) for record in b.records
        ],
        "block": ours,
    }


def prepare_whole(plain: Path, name: str, cache: Path) -> int:
    """From the file to shards, with one tokenising thread; the number of tokens."""
    data = prepare(
        DataConfig(source=str(plain)), name, train_tokens=None, val_tokens=None,
        cache_dir=cache, workers=1,
    )  # fmt: skip
    shutil.rmtree(cache)
    return len(data.train) + len(data.val)


def cpu_seconds(work: Callable[[], Any]) -> float:
    """CPU seconds of all threads of this process."""
    started = time.process_time()
    work()
    return time.process_time() - started


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Rates of each way and turn, and ratios. Ways take turns block by block (about 0.2 s)."""
    texts = first_documents(options.source, options.documents)
    seconds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        plain = folder / "documents.jsonl"
        lines = (json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
        plain.write_text("".join(lines), encoding="utf-8")
        source = open_source(str(plain))
        blocks = list(cut_blocks(source))
        ways = block_ways(options.tokenizer, folder)
        n_tokens = prepare_whole(plain, options.tokenizer, folder / "cache")  # warms up, too
        for _ in range(options.repeats):
            turn = dict.fromkeys([*ways, "whole"], 0.0)
            for block in blocks:
                for way, work in ways.items():
                    turn[way] += cpu_seconds(functools.partial(work, block))
            turn["whole"] = cpu_seconds(
                lambda: prepare_whole(plain, options.tokenizer, folder / "cache")
            )
            for way, value in turn.items():
                seconds.setdefault(way, []).append(value)
    rates = {way: [n_tokens / s / 1e6 for s in values] for way, values in seconds.items()}
    return {
        **about(
            f"python -m benchmarks.tokenizing --source {Path(options.source).name} "
            f"--tokenizer {options.tokenizer} --documents {options.documents} "
            f"--repeats {options.repeats}"
        ),
        "documents": len(texts),
        "tokens": n_tokens,
        "repeats": options.repeats,
        "target": TARGET,
        "million_tokens_per_cpu_second": rates,
        "ratios": {
            way: {raw: ratio(rates[way], rates[raw]) for raw in RAW} for way in ("block", "whole")
        },
    }


def ratio(ours: list[float], raw: list[float]) -> list[float]:
    """Turn by turn."""
    return [a / b for a, b in zip(ours, raw, strict=True)]


def render(result: dict[str, Any]) -> str:
    """The result as Markdown: medians, with the lowest and highest turn."""

    def cell(values: list[float], digits: int = 2) -> str:
        low, middle, high = min(values), statistics.median(values), max(values)
        return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"

    rates, ratios = result["million_tokens_per_cpu_second"], result["ratios"]
    lines = [
        "# Tokenising against raw tiktoken, per core",
        "",
        f"Median of {result['repeats']} turns (lowest to highest); {result['documents']:,} "
        f"documents, {result['tokens']:,} tokens.",
        "",
        f"| way | million tokens per CPU second | {' | '.join('ratio to ' + raw for raw in RAW)} |",
        "|---|---|---|---|",
    ]
    for way, values in rates.items():
        cells = [cell(ratios[way][raw]) if way in ratios else "" for raw in RAW]
        lines.append(f"| {way} | {cell(values)} | {' | '.join(cells)} |")
    verdicts = [
        f"{way} {middle:.0%} of {raw} ({'reached' if middle >= result['target'] else 'missed'})"
        for way in ratios
        for raw in RAW
        for middle in [statistics.median(ratios[way][raw])]
    ]
    lines += [
        "",
        "encode_ordinary_batch (Python lists, one thread) and encode_to_numpy: raw tiktoken on "
        "texts in memory. block: what a tokenising thread does (hash, split, encode, checksum, "
        "write shards). whole: `prepare` with one thread, from a .jsonl on disk to shards, reading "
        "and parsing included, CPU seconds of all threads.",
        "",
        f"Target: at least {result['target']:.0%}. Measured: {'; '.join(verdicts)}.",
        "",
        f"Machine: {result['machine']}. Commit {result['commit']}. Command: `{result['command']}`.",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure, print and write results/tokenizing.{json,md}."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--source", default="demo", help="text, jsonl or parquet file, or folder")
    parser.add_argument("--tokenizer", default="gpt2")
    parser.add_argument("--documents", type=int, default=4000)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    options = parser.parse_args()
    result = measure(options)
    report = render(result)
    print(report)
    write_results(options.out, "tokenizing", result, report)


if __name__ == "__main__":
    main()
