"""Everything most worth knowing on a GPU, in one call of under ten minutes.

    python -m benchmarks.gpu --data FOLDER [--out FOLDER] [--budget 1e15] [--trials 16]
        [--scale 100] [--minutes 9] [--skip throughput,search] [--shapes 64x4,128x4]

1. `tests`: those marked `gpu`;
2. `throughput` of four shapes: steps queued, captured as a graph, compiled too, modern recipe;
3. `profile`: where the time of two shapes goes;
4. `trials`: one configuration of the budget, cold and warm in one worker;
5. `search`: a real one at the budget on the text given (default space, known-good first proposal);
6. `promote`: the predicted best trial, with the prediction beside the result.

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

from benchmarks import gpu_speed
from benchmarks.common import ROOT, about
from studies.promotion.promote import PromoteHooks, PromoteSettings, promote
from studies.search import Hooks, search
from studies.settings import SearchSettings
from studies.space.rungs import DEFAULT_RUNGS, Rungs
from studies.trackers.base import Observer, RunView
from trainer.data.config import DataConfig
from trainer.events import RunResult

STAGES = ("tests", "throughput", "profile", "trials", "search", "promote")


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
    lines += gpu_speed.tables(result)
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
    parser.add_argument("--seconds", type=float, default=1.0, help="of one measurement")
    parser.add_argument(
        "--shapes", default=",".join(f"{width}x{layers}" for width, layers in gpu_speed.BARS)
    )
    parser.add_argument("--work", type=Path, default=Path("outputs/gpu"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    started = time.monotonic()
    deadline = started + 60 * options.minutes
    shapes = [(int(w), int(n)) for w, n in (each.split("x") for each in options.shapes.split(","))]
    stages = [name for name in STAGES if name not in options.skip.split(",")]
    from trainer.hardware.device import detect_device

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
            until = time.monotonic() + 0.5 * (deadline - time.monotonic())
            result[stage] = gpu_speed.throughput(options.tokenizer, shapes, options.seconds, until)
        elif stage == "profile":
            chosen = shapes[1:3] or shapes
            result[stage] = [gpu_speed.profile(options.tokenizer, *each) for each in chosen]
        elif stage == "trials":
            result[stage] = gpu_speed.trials(
                options.tokenizer, data_config(options.data), options.work / "cache",
                shapes[min(2, len(shapes) - 1)], options.budget, options.work / "trials",
            )  # fmt: skip
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
