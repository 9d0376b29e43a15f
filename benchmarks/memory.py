"""Peak memory of a run against its estimate, over shapes from small to large.

    python -m benchmarks.memory [--out FOLDER]

Each shape is trained as a worker of a search does it, after a measurement of its speed, with two
evaluations and the writing of its weights, for about as many seconds as `--seconds` says: in a
process of its own ("fresh"), and then all of them in turn in one process ("warm"). The peak is that
of `RunResult.peak_memory_bytes`: of the whole process, interpreter and PyTorch included, without
the pages of mapped files. Must be within 15 % of `trainer.memory.estimate_memory_bytes`.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT, about, write_results
from trainer.hardware.environment import prepare_environment

LIMIT = 0.15
# (V, D, H, L, B, S, accumulation, dropout, autocast, recipe)
SHAPES = [
    (257, 32, 2, 1, 8, 128, 1, 0.0, "off", "gpt2"),
    (257, 64, 4, 4, 64, 64, 2, 0.1, "auto", "gpt2"),
    (257, 128, 4, 4, 32, 256, 1, 0.0, "auto", "gpt2"),
    (257, 256, 8, 8, 16, 256, 1, 0.0, "auto", "gpt2"),
    (257, 256, 4, 8, 16, 256, 1, 0.1, "off", "gpt2"),
    (257, 128, 8, 6, 8, 1024, 1, 0.1, "auto", "gpt2"),
    (257, 192, 6, 6, 64, 256, 1, 0.0, "off", "gpt2"),
    (50257, 32, 2, 2, 32, 128, 1, 0.1, "auto", "gpt2"),
    (50257, 64, 4, 4, 64, 64, 1, 0.0, "auto", "gpt2"),
    (50257, 128, 4, 4, 16, 256, 2, 0.0, "auto", "gpt2"),
    (50257, 128, 4, 4, 32, 128, 1, 0.0, "off", "gpt2"),
    (50257, 96, 16, 6, 32, 32, 3, 0.1, "auto", "gpt2"),
    (50257, 256, 8, 8, 4, 256, 1, 0.0, "auto", "gpt2"),
    (50257, 256, 8, 8, 64, 256, 1, 0.0, "auto", "gpt2"),
    (50257, 48, 3, 2, 16, 128, 1, 0.0, "auto", "modern"),
    (50257, 80, 5, 2, 32, 128, 1, 0.0, "auto", "modern"),
    (50257, 128, 4, 4, 32, 256, 1, 0.0, "auto", "modern"),
    (50257, 256, 8, 8, 32, 256, 1, 0.0, "auto", "modern"),
]
NAMES = ("n_vocab", "n_embd", "n_head", "n_layer", "batch_size", "seq_len",
         "grad_accumulation_steps", "p_dropout", "autocast", "recipe")  # fmt: skip


def run_config(shape: dict[str, Any], steps: int = 3) -> Any:
    """A run of this shape."""
    from trainer.config import RunConfig

    return RunConfig.model_validate(
        {
            "tokenizer_encoding": "bytes" if shape["n_vocab"] == 257 else "gpt2",
            "model_config": {
                "n_positions": shape["seq_len"],
                **{k: shape[k] for k in ("n_vocab", "n_embd", "n_head", "n_layer", "p_dropout")},
            },
            "device": "cpu",
            "recipe": shape["recipe"],
            "max_lr": 1e-3,
            "num_training_steps": steps,
            "num_evals": 2,
            "num_reports": 2,
            **{
                k: shape[k]
                for k in ("batch_size", "seq_len", "grad_accumulation_steps", "autocast")
            },
        }
    )


def measure(shape: dict[str, Any], seconds: float, threads: int) -> dict[str, Any]:
    """Train one shape in this process for about so long, three steps at least."""
    import numpy as np

    from trainer.data.shards.tokens import TokenArray, TokenData
    from trainer.hardware.device import configure_threads, detect_device
    from trainer.loop import train_run
    from trainer.memory import estimate_memory_bytes
    from trainer.throughput import measure_tokens_per_second

    configure_threads(threads)
    speed = measure_tokens_per_second(run_config(shape))
    config = run_config(shape)
    config = run_config(shape, max(3, round(speed * seconds / config.tokens_per_step)))
    ids = np.random.default_rng(0).integers(0, shape["n_vocab"], 120_000).astype(np.uint16)
    data = TokenData(
        train=TokenArray([ids[:100_000]]),
        val=TokenArray([ids[100_000:]]),
        tokenizer_encoding=config.tokenizer_encoding,
        n_vocab=shape["n_vocab"],
        eot=0,
        bytes_per_token=None,
        data_checksum="",
        val_checksum="",
        description="noise",
        folder=Path(),
        exhausted=True,
    )
    with tempfile.TemporaryDirectory() as folder:
        run = train_run(config, data, Path(folder))
        while True:
            try:
                next(run)
            except StopIteration as stop:
                result = stop.value
                break
    device = detect_device("cpu")
    bf16 = result.precision == "bf16"
    return {
        **shape,
        "steps": config.steps,
        "bf16": bf16,
        "estimate_bytes": estimate_memory_bytes(config, "cpu", bf16),
        "measured_bytes": result.peak_memory_bytes,
        "device": device.name,
        "threads": device.n_threads,
    }


def main() -> int:
    """Measure all shapes, print and write the table; 1 if one is off by more than the limit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--one", help="measure these shapes (JSON) in this process and print them")
    parser.add_argument("--seconds", type=float, default=8.0, help="training of each shape")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    arguments = parser.parse_args()
    if arguments.one:
        for shape in json.loads(arguments.one):
            print(json.dumps(measure(shape, arguments.seconds, arguments.threads)), flush=True)
        return 0
    prepare_environment()  # as the commands do; the processes below inherit it
    shapes = [dict(zip(NAMES, values, strict=True)) for values in SHAPES]
    random.Random(0).shuffle(mixed := list(shapes))
    options = [f"--seconds={arguments.seconds}", f"--threads={arguments.threads}"]
    rows = []
    print(HEADER, flush=True)
    for process, together in [*(("fresh", [shape]) for shape in shapes), ("warm", mixed)]:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.memory", "--one", json.dumps(together), *options],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        for line in done.stdout.splitlines():
            rows.append({"process": process, **json.loads(line)})
            print(table_row(rows[-1]), flush=True)
    worst = max(abs(ratio(row) - 1) for row in rows)
    result = {
        **about("python -m benchmarks.memory"),
        "threads": rows[0]["threads"],
        "n": len(rows),
        "worst_error": worst,
        "rows": rows,
    }
    verdict = f"worst error {worst:.1%} of {LIMIT:.0%} allowed, n = {len(rows)}"
    print(f"\n{verdict}")
    report = (
        f"# Peak memory of a run, estimated and measured\n\n{verdict}. {result['machine']}, commit "
        f"{result['commit']}, torch {result['versions']['torch']}. `{result['command']}`\n\n"
        + "\n".join([HEADER, *map(table_row, rows)])
        + "\n"
    )
    write_results(arguments.out, "memory_cpu", result, report)
    return int(worst > LIMIT)


HEADER = (
    "| process | V | D | H | L | B | S | accum | dropout | recipe | precision | steps "
    "| estimate MB | measured MB | ratio |\n"
    + "|" + "---|" * 15
)  # fmt: skip


def ratio(row: dict[str, Any]) -> float:
    """Estimate over measurement."""
    return row["estimate_bytes"] / row["measured_bytes"]


def table_row(row: dict[str, Any]) -> str:
    """One line of the table."""
    cells = [row["process"], *(row[name] for name in NAMES if name != "autocast")]
    cells += ["bf16" if row["bf16"] else "fp32", row["steps"]]
    cells += [round(row[f"{what}_bytes"] / 1e6) for what in ("estimate", "measured")]
    return "| " + " | ".join(map(str, [*cells, f"{ratio(row):.3f}"])) + " |"


if __name__ == "__main__":
    sys.exit(main())
