"""Peak memory of a run against its estimate, over shapes from small to large.

    python benchmarks/memory.py [--out benchmarks/results]

Each shape is trained for three steps, with evaluation and the writing of its weights, in a process
of its own; the peak is that of `RunResult.peak_memory_bytes` (resident memory of the whole process,
interpreter and PyTorch included). Must be within 15 % of `trainer.memory.estimate_memory_bytes`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

LIMIT = 0.15
# (V, D, H, L, B, S, accumulation, dropout, autocast)
SHAPES = [
    (257, 32, 2, 1, 8, 128, 1, 0.0, "off"),
    (257, 64, 4, 4, 64, 64, 2, 0.1, "auto"),
    (257, 128, 4, 4, 32, 256, 1, 0.0, "auto"),
    (257, 256, 8, 8, 16, 256, 1, 0.0, "auto"),
    (257, 256, 4, 8, 16, 256, 1, 0.1, "off"),
    (257, 128, 8, 6, 8, 1024, 1, 0.1, "auto"),
    (257, 192, 6, 6, 64, 256, 1, 0.0, "off"),
    (50257, 32, 2, 2, 32, 128, 1, 0.1, "auto"),
    (50257, 64, 4, 4, 64, 64, 1, 0.0, "auto"),
    (50257, 128, 4, 4, 16, 256, 2, 0.0, "auto"),
    (50257, 128, 4, 4, 32, 128, 1, 0.0, "off"),
    (50257, 96, 16, 6, 32, 32, 3, 0.1, "auto"),
    (50257, 256, 8, 8, 4, 256, 1, 0.0, "auto"),
    (50257, 256, 8, 8, 64, 256, 1, 0.0, "auto"),
]
NAMES = ("n_vocab", "n_embd", "n_head", "n_layer", "batch_size", "seq_len",
         "grad_accumulation_steps", "p_dropout", "autocast")  # fmt: skip


def run_config(shape: dict[str, Any]) -> Any:
    """A run of three steps of this shape."""
    from trainer.config import RunConfig

    return RunConfig.model_validate(
        {
            "tokenizer_encoding": "bytes" if shape["n_vocab"] == 257 else "gpt2",
            "model_config": {
                "n_positions": shape["seq_len"],
                **{k: shape[k] for k in ("n_vocab", "n_embd", "n_head", "n_layer", "p_dropout")},
            },
            "device": "cpu",
            "max_lr": 1e-3,
            "num_training_steps": 3,
            "num_evals": 1,
            "num_reports": 1,
            **{
                k: shape[k]
                for k in ("batch_size", "seq_len", "grad_accumulation_steps", "autocast")
            },
        }
    )


def measure(shape: dict[str, Any]) -> dict[str, Any]:
    """Train one shape in this process."""
    import numpy as np

    from trainer.device import detect_device
    from trainer.loop import train_run
    from trainer.memory import estimate_memory_bytes
    from trainer.tokens import TokenArray, TokenData

    config = run_config(shape)
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
        "bf16": bf16,
        "estimate_bytes": estimate_memory_bytes(config, "cpu", bf16),
        "measured_bytes": result.peak_memory_bytes,
        "device": device.name,
        "threads": device.n_threads,
    }


def main() -> int:
    """Measure all shapes, print and write the table; 1 if one is off by more than the limit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--one", help="measure one shape (JSON) and print it")
    parser.add_argument("--out", type=Path, help="folder for memory_cpu.json and memory_cpu.md")
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(json.loads(arguments.one))))
        return 0
    rows = []
    root = Path(__file__).parents[1]
    print(HEADER, flush=True)
    for values in SHAPES:
        shape = dict(zip(NAMES, values, strict=True))
        process = subprocess.run(
            [sys.executable, __file__, "--one", json.dumps(shape)],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            env={**os.environ, "PYTHONPATH": str(root)},
        )
        rows.append(json.loads(process.stdout))
        print(table_row(rows[-1]), flush=True)
    worst = max(abs(ratio(row) - 1) for row in rows)
    import torch

    summary = {
        "machine": rows[0]["device"],
        "cores": os.cpu_count(),
        "threads": rows[0]["threads"],
        "system": platform.platform(),
        "torch": torch.__version__,
        "n": len(rows),
        "worst_error": worst,
        "rows": rows,
    }
    verdict = f"worst error {worst:.1%} of {LIMIT:.0%} allowed, n = {len(rows)} shapes"
    print(f"\n{verdict}")
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "memory_cpu.json").write_text(json.dumps(summary, indent=1) + "\n")
        (arguments.out / "memory_cpu.md").write_text(
            f"# Peak memory of a run, estimated and measured\n\n{verdict}. {summary['machine']}, "
            f"{summary['cores']} cores, torch {summary['torch']}. `python benchmarks/memory.py`\n\n"
            + "\n".join([HEADER, *map(table_row, rows)])
            + "\n"
        )
    return int(worst > LIMIT)


HEADER = (
    "| V | D | H | L | B | S | accum | dropout | precision | estimate MB | measured MB | ratio |\n"
    + "|" + "---|" * 12
)  # fmt: skip


def ratio(row: dict[str, Any]) -> float:
    """Estimate over measurement."""
    return row["estimate_bytes"] / row["measured_bytes"]


def table_row(row: dict[str, Any]) -> str:
    """One line of the table."""
    cells = [row[name] for name in NAMES[:-1]]
    cells += ["bf16" if row["bf16"] else "fp32"]
    cells += [round(row[f"{what}_bytes"] / 1e6) for what in ("estimate", "measured")]
    return "| " + " | ".join(map(str, [*cells, f"{ratio(row):.3f}"])) + " |"


if __name__ == "__main__":
    sys.exit(main())
