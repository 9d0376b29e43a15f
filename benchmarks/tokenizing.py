"""Tokenising against raw tiktoken, per core: `python benchmarks/tokenizing.py --source PATH`.

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
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import tiktoken  # noqa: E402

from trainer.blocks import SplitRule, choose_val_below, cut_blocks, encode_block  # noqa: E402
from trainer.config import DataConfig  # noqa: E402
from trainer.corpus import iter_documents, open_corpus  # noqa: E402
from trainer.prepare import prepare  # noqa: E402
from trainer.tokenizers import load_tokenizer  # noqa: E402
from trainer.tokens import write_shard  # noqa: E402

TARGET = 0.9
RAW = ("encode_ordinary_batch", "encode_to_numpy")


def machine() -> str:
    """Processor, cores and versions."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        models = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        name = models[0].partition(":")[2].strip() if models else name
    python = f"Python {platform.python_version()}, tiktoken {tiktoken.__version__}"
    return f"{name}, {os.cpu_count()} cores, {python}"


def commit() -> str:
    """The commit measured."""
    command = ["git", "describe", "--always", "--dirty"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def first_documents(source: str, n: int) -> list[str]:
    """The first `n` documents that are not empty."""
    texts: list[str] = []
    for text in iter_documents(DataConfig(source=source)):
        if len(texts) == n:
            break
        if not text.isspace():
            texts.append(text)
    return texts


def ways(texts: list[str], name: str, folder: Path) -> dict[str, Callable[[], Any]]:
    """What is measured; each call tokenises all of `texts` once."""
    encoding = tiktoken.get_encoding(name)
    tokenizer = load_tokenizer(name)
    plain = folder / "documents.jsonl"
    with plain.open("w", encoding="utf-8") as file:
        for text in texts:
            file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
    corpus = open_corpus(str(plain))
    blocks = list(cut_blocks(corpus))
    rule = SplitRule(val_below=choose_val_below(None, 0))

    def block() -> None:
        for item in blocks:
            made = encode_block(
                item, tokenizer, rule, True, corpus.place, threading.Event(), lambda *_: None
            )
            assert made is not None
            for split, ids in (("train", made.train), ("val", made.val)):
                write_shard(folder / f"{split}.tok", ids, tokenizer=name, split=split)

    def whole() -> int:
        cache = folder / "cache"
        data = prepare(
            DataConfig(source=str(plain)), name, train_tokens=None, val_tokens=None,
            cache_dir=cache, workers=1,
        )  # fmt: skip
        shutil.rmtree(cache)
        return len(data.train) + len(data.val)

    return {
        "encode_ordinary_batch": lambda: encoding.encode_ordinary_batch(texts, num_threads=1),
        "encode_to_numpy": lambda: [
            encoding.encode_to_numpy(text, disallowed_special=()) for text in texts
        ],
        "block": block,
        "whole": whole,
    }


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Rates of each way and turn, and their ratio to the faster raw one of the turn."""
    texts = first_documents(options.source, options.documents)
    seconds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        todo = ways(texts, options.tokenizer, Path(name))
        n_tokens = todo["whole"]()  # also warms up
        for _ in range(options.repeats):
            for way, work in todo.items():
                started = time.process_time()
                work()
                seconds.setdefault(way, []).append(time.process_time() - started)
    rates = {way: [n_tokens / s / 1e6 for s in values] for way, values in seconds.items()}
    return {
        "machine": machine(),
        "commit": commit(),
        "command": "python benchmarks/tokenizing.py "
        f"--source {Path(options.source).name} --tokenizer {options.tokenizer} "
        f"--documents {options.documents} --repeats {options.repeats}",
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
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "tokenizing.json").write_text(json.dumps(result, indent=1) + "\n")
    (options.out / "tokenizing.md").write_text(report)


if __name__ == "__main__":
    main()
