"""What a trial costs beyond its training: a search of many tiny trials, one worker, SQLite.

    python -m benchmarks.orchestration [--trials 200] [--sampler tpe] [--simulate] [--out FOLDER]

The search is the real one: proposals, constraint, worker process, training, store. From the end
of one trial to the end of the next, what is not training or validation is orchestration:
proposing, admitting, storing, handing over, model and optimiser construction, model.pt,
config.yaml, eval.json and curve.csv.

With `--simulate` nothing is trained (docs/simulation.md): the default space at 1e15, no worker
process, so that 10,000 trials are a matter of minutes. CPU seconds are given beside the time on the
clock, which other work on the machine lengthens.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.common import about, write_results
from studies.search import Hooks, search
from studies.settings import SearchSettings
from studies.simulation.backend import Simulated
from studies.simulation.worlds import DEFAULT_WORLD
from studies.space.search_space import space_from_dict
from studies.trackers.base import Observer, RunView
from trainer.data.config import DataConfig
from trainer.events import RunResult

SPACE = {
    "parameters": {
        "n_embd": {"min": 8, "max": 32, "step": 8},
        "n_layer": {"values": [1, 2, 3]},
        "head_dim": {"value": 8},
        "seq_len": {"values": [16, 32, 64]},
        "batch_size": {"values": [1, 2, 4]},
        "max_lr": {"min": 1e-4, "max": 1e-1, "distribution": "log_uniform_values"},
        "warmup_fraction": {"min": 0.01, "max": 0.5},
        "weight_decay": {"min": 0.0, "max": 0.5},
        "beta2": {"min": 0.9, "max": 0.999},
        "p_dropout": {"value": 0.0},
    }
}


class Stopwatch(Observer):
    """Times from one trial's end to the next one's, less training and validation."""

    def __init__(self) -> None:
        self.last: float | None = None
        self.overheads: list[float] = []
        self.training: list[float] = []

    def run_ended(self, run: RunView, result: RunResult, best_val_loss_nats: float | None) -> None:
        """Take the time."""
        del run, best_val_loss_nats
        now = time.perf_counter()
        busy = result.train_seconds + result.eval_seconds
        if self.last is not None:
            self.overheads.append(now - self.last - busy)
        self.training.append(busy)
        self.last = now


def measure(n_trials: int, sampler: str, simulate: bool) -> dict[str, Any]:
    """Run the search in a fresh folder."""
    watch = Stopwatch()
    cpu, clock = time.process_time(), time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        text = folder / "text.txt"
        text.write_text("\n\n".join(f"the {i} quick brown foxes {i * i}" for i in range(3000)))
        simulated = SearchSettings(
            storage=folder / "study.db", study="orchestration", backend=Simulated(DEFAULT_WORLD),
            sampler=sampler, trials=n_trials,  # type: ignore[arg-type]
        )  # fmt: skip
        settings = (
            simulated
            if simulate
            else SearchSettings(
                storage=folder / "study.db",
                study="orchestration",
                budget_flops=20_000_000,
                space=space_from_dict(SPACE, "space"),
                sampler=sampler,  # type: ignore[arg-type]
                trials=n_trials,
                threads=1,
                device="cpu",
                data=DataConfig(source=str(text)),
                tokenizer="bytes",
                overrides=("num_evals=2", "num_reports=10"),
                cache_dir=folder / "cache",
            )
        )
        outcome = search(settings, Hooks(observer=watch))
    assert outcome.n_finished == n_trials, outcome
    milliseconds = [1000 * seconds for seconds in watch.overheads]
    tenth = max(1, n_trials // 10)
    quantiles = statistics.quantiles(milliseconds, n=20)
    return {
        "n_trials": n_trials,
        "sampler": sampler,
        "overhead_ms": {
            "median": statistics.median(milliseconds),
            "p5": quantiles[0],
            "p95": quantiles[-1],
            "first_tenth_median": statistics.median(milliseconds[:tenth]),
            "last_tenth_median": statistics.median(milliseconds[-tenth:]),
        },
        "training_ms_median": 1000 * statistics.median(watch.training),
        "cpu_seconds": time.process_time() - cpu,
        "seconds": time.perf_counter() - clock,
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--sampler", default="tpe")
    parser.add_argument("--simulate", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    command = f"python -m benchmarks.orchestration --trials {options.trials}"
    if options.simulate:
        command += f" --sampler {options.sampler} --simulate"
    result = {**about(command), **measure(options.trials, options.sampler, options.simulate)}
    overhead, kind = result["overhead_ms"], "simulated" if options.simulate else "tiny"
    lines = [
        f"# Orchestration: {options.trials} {kind} trials, one worker, SQLite, {options.sampler}",
        "",
        f"{result['machine']}, commit {result['commit']}; `{command}`",
        "",
        "| milliseconds per trial beyond training and validation | |",
        "|---|---:|",
        f"| median | {overhead['median']:.0f} |",
        f"| 5 % … 95 % | {overhead['p5']:.0f} … {overhead['p95']:.0f} |",
        f"| first tenth, median | {overhead['first_tenth_median']:.0f} |",
        f"| last tenth, median | {overhead['last_tenth_median']:.0f} |",
        f"| training and validation, median | {result['training_ms_median']:.0f} |",
        f"| CPU of the dispatcher, mean | {1000 * result['cpu_seconds'] / options.trials:.0f} |",
        "",
        f"All of it: {result['seconds']:.0f} s on the clock, {result['cpu_seconds']:.0f} s of the "
        "dispatcher's CPU.",
        "",
    ]
    print("\n".join(lines))
    name = f"orchestration_simulated_{options.sampler}" if options.simulate else "orchestration"
    write_results(options.out, f"{name}_{options.trials}", result, "\n".join(lines))


if __name__ == "__main__":
    main()
