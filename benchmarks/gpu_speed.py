"""How fast a GPU trains, and where its time goes: the parts of `python -m benchmarks.gpu`.

Everything runs on a CPU too, at its pace, so that it can be debugged there.
"""

from __future__ import annotations

import time
from pathlib import Path
from statistics import median
from typing import Any

import torch

from budgetsweep.constraint import fill
from trainer.config import RunConfig
from trainer.data.config import DataConfig
from trainer.hardware.device import torch_device
from trainer.throughput import StepTimer

BARS = {(64, 4): 7.0e6, (128, 4): 5.5e6, (256, 8): 3.0e6, (512, 8): 1.4e6}
"""(width, blocks): tokens per second aimed at on one H200, T = 256."""
ROUNDS = 5
CONTENDERS: dict[str, dict[str, Any]] = {
    "queued": {"recipe": "gpt2", "cuda_graph": "off"},
    "graph": {"recipe": "gpt2"},
    "graph, compiled": {"recipe": "gpt2", "compile": "on"},
    "graph, modern": {"recipe": "modern"},
}
VAL_TOKENS = 131_072
TRIALS = 4
"""Runs of one configuration in a worker; the first is the cold one."""


def run_config(tokenizer: str, width: int, layers: int, **changes: Any) -> RunConfig:
    """A decoder's run of a shape, 64 sequences of 256 tokens per step."""
    return RunConfig.model_validate(
        {
            "tokenizer_encoding": tokenizer,
            "model_config": {
                "n_embd": width, "n_head": max(1, width // 64), "n_positions": 256,
                "n_layer": layers, "p_dropout": 0.0,
            },
            "batch_size": 64, "seq_len": 256, "max_lr": 1e-3, "num_training_steps": 1000,
            **changes,
        }
    )  # fmt: skip


def throughput(
    tokenizer: str, shapes: list[tuple[int, int]], seconds: float, deadline: float
) -> list[dict[str, Any]]:
    """Training tokens per second of each shape and contender, `ROUNDS` rounds in turns.

    Args:
        tokenizer: a tokenizer's name, for the vocabulary.
        shapes: (width, blocks).
        seconds: time of a measurement.
        deadline: `time.monotonic()` after which no further shape is begun.
    """
    rows: list[dict[str, Any]] = []
    device = torch_device()
    for width, layers in shapes:
        if time.monotonic() > deadline:
            rows.append({"shape": f"D{width} L{layers}", "error": "no time left"})
            continue
        timers: dict[str, StepTimer] = {}
        began: dict[str, float] = {}
        for name, changes in CONTENDERS.items():
            start = time.perf_counter()
            try:
                timers[name] = StepTimer(run_config(tokenizer, width, layers, **changes), device)
            except Exception as error:  # noqa: BLE001 - out of memory, no compiler: told, not fatal
                message = f"{type(error).__name__}: {str(error)[:200]}"
                rows.append({"shape": f"D{width} L{layers}", "contender": name, "error": message})
                continue
            began[name] = time.perf_counter() - start
        speeds: dict[str, list[float]] = {name: [] for name in timers}
        for _ in range(ROUNDS):
            for name, timer in timers.items():
                speeds[name].append(timer.tokens_per_second(seconds))
        for name, each in speeds.items():
            config = timers[name].training.config
            rows.append(
                {
                    "shape": f"D{width} L{layers}",
                    "contender": name,
                    "tokens_per_second": each,
                    "median": median(each),
                    "useful_tflops": median(each)
                    * config.flops_per_step("matmul") / config.tokens_per_step / 1e12,
                    "seconds_until_ready": began[name],
                    "bar": BARS.get((width, layers)),
                }
            )  # fmt: skip
            print(rows[-1], flush=True)
        del timers
    return rows


def profile(tokenizer: str, width: int, layers: int, steps: int = 5) -> dict[str, Any]:
    """Where the time of queued steps goes, by operation on the device: the largest twenty."""
    from torch.profiler import ProfilerActivity

    device = torch_device()
    config = run_config(tokenizer, width, layers, recipe="modern", cuda_graph="off")
    timer = StepTimer(config, device)
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as watched:
        seconds = timer.time_steps(steps)
    attribute = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    kinds = watched.key_averages()
    total = sum(getattr(kind, attribute) for kind in kinds) or 1.0
    kinds = sorted(kinds, key=lambda kind: -getattr(kind, attribute))[:20]
    return {
        "shape": f"D{width} L{layers}, modern",
        "milliseconds_a_step": 1e3 * seconds / steps,
        "operations": [
            {"name": kind.key[:100], "calls": kind.count, "share": getattr(kind, attribute) / total}
            for kind in kinds
        ],
    }


def trials(
    tokenizer: str, data: DataConfig, cache: Path, shape: tuple[int, int], budget: float, work: Path
) -> list[dict[str, Any]]:
    """One configuration trained again and again by one worker: cold first, then warm.

    Returns:
        Of each run: seconds from its submission to its result, of training and of validation.
    """
    from studies.execution.local_pool import LocalPool
    from studies.execution.messages import Job, RunEvent, Workers
    from trainer.data.prepare import prepare
    from trainer.events import RunResult

    wanted = run_config(
        tokenizer, *shape, recipe="modern", data=data, budget_flops=int(budget), num_evals=1,
        num_training_steps="fill", batch_size=64, max_lr=3e-3,
    )  # fmt: skip
    config = fill(wanted)
    n_tokens = config.total_tokens
    tokens = prepare(data, tokenizer, cache_dir=cache, train_tokens=n_tokens, val_tokens=VAL_TOKENS)
    fixed = data.fixed_to(tokens, n_tokens, VAL_TOKENS)
    config = config.with_changes(data=fixed.model_copy(update={"max_epochs": 1e3}))
    rows = []
    with LocalPool(Workers(cache_dir=cache)) as pool:
        pool.start_all()
        for number in range(TRIALS):
            start = time.perf_counter()
            pool.submit(Job(number, config, work / f"trial-{number}", wait_for_verdict=False))
            result: RunResult | None = None
            while result is None:
                for event in pool.poll(0.05):
                    if not isinstance(event, RunEvent):
                        raise RuntimeError(event.reason)
                    if isinstance(event.event, RunResult):
                        result = event.event
            wall = time.perf_counter() - start
            rows.append(
                {
                    "status": result.status, "reason": result.reason, "wall_seconds": wall,
                    "train_seconds": result.train_seconds, "eval_seconds": result.eval_seconds,
                    "not_training_seconds": wall - result.train_seconds,
                    "steps": result.step, "val_loss_nats": result.val_loss_nats,
                    "peak_memory_bytes": result.peak_memory_bytes,
                }
            )  # fmt: skip
            print(rows[-1], flush=True)
    return rows


def tables(result: dict[str, Any]) -> list[str]:
    """Markdown of what these stages gave."""
    lines: list[str] = []
    if rows := result.get("throughput"):
        lines += [
            f"## Training, T = 256, 64 sequences per step, median of {ROUNDS} (least to most)", "",
            "| shape | | tokens/s | aim | TFLOP/s (exact products) | s until ready |",
            "|---|---|---:|---:|---:|---:|",
        ]  # fmt: skip
        for row in rows:
            name = f"| {row['shape']} | {row.get('contender', '')} |"
            if "error" in row:
                lines.append(f"{name} {row['error']} | | | |")
                continue
            speeds, aim = row["tokens_per_second"], ""
            if row["bar"] and row["contender"] != "graph, modern":
                aim = f"{row['bar']:,.0f}"
            lines.append(
                f"{name} {row['median']:,.0f} ({min(speeds):,.0f} to {max(speeds):,.0f}) | {aim} | "
                f"{row['useful_tflops']:.3g} | {row['seconds_until_ready']:.1f} |"
            )
        lines.append("")
    for facts in result.get("profile", []):
        took = f"{facts['milliseconds_a_step']:.2f} ms a step, queued"
        lines += [
            f"## Where the time goes: {facts['shape']}, {took}", "",
            "| operation | calls | share |", "|---|---:|---:|",
        ]  # fmt: skip
        for each in facts["operations"]:
            lines.append(f"| `{each['name']}` | {each['calls']} | {100 * each['share']:.1f} % |")
        lines.append("")
    if rows := result.get("trials"):
        lines += [
            "## One configuration, again and again in one worker", "",
            "| | wall s | training s | validation s | not training s | val loss |",
            "|---|---:|---:|---:|---:|---:|",
        ]  # fmt: skip
        for number, row in enumerate(rows):
            loss = "" if row["val_loss_nats"] is None else f"{row['val_loss_nats']:.4f}"
            lines.append(
                f"| {'cold' if number == 0 else 'warm'} | {row['wall_seconds']:.2f} | "
                f"{row['train_seconds']:.2f} | {row['eval_seconds']:.2f} | "
                f"{row['not_training_seconds']:.2f} | {loss} {row['reason'] or ''} |"
            )
        lines.append("")
    return lines
