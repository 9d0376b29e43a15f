"""Everything most worth knowing on a GPU, in one call of under ten minutes.

    python -m benchmarks.gpu --data FOLDER [--out FOLDER] [--budget 1e15] [--trials 16]
        [--scale 100] [--minutes 9] [--skip tests,throughput,search,promote]

1. tests marked `gpu`;
2. training throughput of four shapes, eager and compiled;
3. a real search at the budget on the text given (default space, first proposal known-good);
4. a real promotion of the best trial.

`--data` is a folder of text (jsonl, xz allowed) with `validation*` files beside the training files,
or `demo`. Every stage writes its results before the next begins, and the stages share the minutes,
so a limit that strikes loses nothing. On a CPU give a small budget: the same code runs.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT, about
from studies.observer import Observer, RunView
from studies.promote import PromoteHooks, PromoteSettings, promote
from studies.rungs import DEFAULT_RUNGS, Rungs
from studies.search import Hooks, search
from studies.settings import SearchSettings
from trainer.config import DataConfig, RunConfig
from trainer.events import RunResult

SHAPES = ((64, 4), (128, 4), (256, 8), (512, 8))
STAGES = ("tests", "throughput", "search", "promote")


class Lines(Observer):
    """A line a run, with the time since the start."""

    def __init__(self, started: float) -> None:
        self.started = started

    def message(self, text: str) -> None:
        """Print."""
        print(f"[{time.monotonic() - self.started:6.1f} s] {text}", flush=True)

    def run_ended(self, run: RunView, result: RunResult, best_val_loss_nats: float | None) -> None:
        """Print."""
        self.message(
            f"{run.kind} {run.number} {result.status} {result.val_loss_nats} in "
            f"{result.train_seconds:.1f} + {result.eval_seconds:.1f} s, best {best_val_loss_nats} "
            f"{run.params} {result.reason or ''}"
        )


def gpu_tests() -> dict[str, Any]:
    """The tests marked `gpu`; without a GPU they are skipped."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    print(done.stdout[-3000:], flush=True)
    return {"rc": done.returncode, "tail": done.stdout.splitlines()[-3:]}


def throughput(tokenizer: str, seconds: float) -> list[dict[str, Any]]:
    """Training tokens a second of each shape at T = 256."""
    from trainer.measuring import measure_tokens_per_second

    rows = []
    for width, layers in SHAPES:
        config = RunConfig.model_validate(
            {
                "tokenizer_encoding": tokenizer,
                "model_config": {
                    "n_embd": width, "n_head": max(1, width // 32), "n_positions": 256,
                    "n_layer": layers, "p_dropout": 0.0,
                },
                "batch_size": 64, "seq_len": 256, "max_lr": 1e-3, "num_training_steps": 1000,
            }
        )  # fmt: skip
        try:
            speeds = sorted(measure_tokens_per_second(config, seconds) for _ in range(5))
        except RuntimeError as error:  # out of memory on a small device
            rows.append({"n_embd": width, "n_layer": layers, "error": str(error)[:200]})
            continue
        rows.append(
            {
                "n_embd": width,
                "n_layer": layers,
                "batch_size": 64,
                "seq_len": 256,
                "tokens_per_second": speeds[2],
                "least": speeds[0],
                "most": speeds[-1],
            }
        )
        print(rows[-1], flush=True)
    return rows


def data_config(source: str) -> DataConfig:
    """Training and validation text of a folder, or another source as it is."""
    folder = Path(source)
    if not folder.is_dir():
        return DataConfig(source=source)
    validation = sorted(folder.glob("validation*"))
    train = str(folder / "train*") if list(folder.glob("train*")) else source
    return DataConfig(source=train, validation=str(validation[0]) if validation else None)


def run_search(options: argparse.Namespace, lines: Lines, deadline: float) -> dict[str, Any]:
    """The search; stops in time for the promotion."""
    settings = SearchSettings(
        storage=options.work / "study.db",
        study="gpu",
        budget_flops=int(options.budget),
        data=data_config(options.data),
        tokenizer=options.tokenizer,
        trials=options.trials,
        rungs=Rungs.parse(DEFAULT_RUNGS),
        for_scale=options.scale,
        cache_dir=options.work / "cache",
        hours=max(1.0, deadline - time.monotonic()) / 3600,
    )
    outcome = search(settings, Hooks(observer=lines))
    best = outcome.best
    return {
        "finished": outcome.n_finished,
        "reason": outcome.reason,
        "best": None if best is None else {
            "number": best.number, "params": best.params, "val_loss_nats": best.val_loss_nats,
            "val_ppl": best.val_ppl, "n_params": best.n_params, "tokens": best.planned_tokens,
            "epochs": best.epochs, "train_seconds": best.train_seconds,
            "flops_nanogpt": best.planned_flops_nanogpt, "config": best.config,
        },
    }  # fmt: skip


def run_promotion(options: argparse.Namespace, lines: Lines, deadline: float) -> dict[str, Any]:
    """The promotion, checkpointed where the time is up."""
    settings = PromoteSettings(
        storage=options.work / "study.db",
        scale=options.scale,
        cache_dir=options.work / "cache",
        output_dir=options.work / "promoted",
        overrides=("data.max_epochs=100",),
    )
    hooks = PromoteHooks(observer=lines, should_stop=lambda: time.monotonic() > deadline)
    done = promote(settings, hooks)
    run, told = done.run, done.predicted
    if run is None:
        return {"status": "not started"}
    return {
        "status": run.status, "step": run.step, "num_steps": run.num_steps, "reason": run.reason,
        "val_loss_nats": run.val_loss_nats, "val_ppl": run.val_ppl, "epochs": run.epochs,
        "tokens": run.planned_tokens, "flops_nanogpt": run.planned_flops_nanogpt,
        "train_seconds": run.train_seconds, "config": run.config,
        "predicted": None if told is None else {
            "val_loss_nats": told.val_loss_nats, "low_nats": told.low_nats,
            "high_nats": told.high_nats, "selected_by": told.selected_by,
        },
    }  # fmt: skip


def render(result: dict[str, Any]) -> str:
    """The results as Markdown."""
    lines = [f"# {result['device']['name']}", "", f"commit {result['commit']}, torch "
             f"{result['versions']['torch']}; `{result['command']}`", ""]  # fmt: skip
    if rows := result.get("throughput"):
        lines += ["| shape, T256 | tokens/s (median of 5) | least … most |", "|---|---:|---:|"]
        for row in rows:
            name = f"D{row['n_embd']} L{row['n_layer']}"
            if "error" in row:
                lines.append(f"| {name} | {row['error']} | |")
            else:
                lines.append(f"| {name} | {row['tokens_per_second']:,.0f} | "
                             f"{row['least']:,.0f} … {row['most']:,.0f} |")  # fmt: skip
        lines.append("")
    for stage in ("tests", "search", "promote"):
        if stage in result:
            facts = json.dumps(result[stage], indent=2)
            lines += [f"## {stage}", "", "```json", facts, "```", ""]
    return "\n".join(lines)


def main() -> None:
    """Run the stages, writing results after each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="demo")
    parser.add_argument("--tokenizer", default="gpt2")
    parser.add_argument("--budget", type=float, default=1e15)
    parser.add_argument("--trials", type=int, default=16)
    parser.add_argument("--scale", type=float, default=100.0)
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--skip", default="")
    parser.add_argument("--work", type=Path, default=Path("outputs/gpu"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    started = time.monotonic()
    deadline = started + 60 * options.minutes
    stages = [name for name in STAGES if name not in options.skip.split(",")]
    from trainer.device import detect_device

    device = detect_device()
    result = {**about("python -m benchmarks.gpu " + " ".join(sys.argv[1:])),
              "device": dataclasses.asdict(device)}  # fmt: skip
    options.out.mkdir(parents=True, exist_ok=True)
    lines = Lines(started)
    for stage in stages:
        lines.message(f"== {stage}")
        if stage == "tests":
            result[stage] = gpu_tests()
        elif stage == "throughput":
            result[stage] = throughput(options.tokenizer, 1.0)
        elif stage == "search":
            left = deadline - time.monotonic()
            share = 0.45 if "promote" in stages else 0.95
            result[stage] = run_search(options, lines, time.monotonic() + share * left)
        else:
            result[stage] = run_promotion(options, lines, deadline - 20.0)
        name = f"gpu_{device.kind}"
        (options.out / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n")
        (options.out / f"{name}.md").write_text(render(result))
    lines.message("done")


if __name__ == "__main__":
    main()
