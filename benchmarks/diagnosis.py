"""How often `diagnose` finds what is broken, and how often it finds fault with a sound run.

    python -m benchmarks.diagnosis [--runs FILE] [--seeds 2000:2020] [--out FOLDER]

Trains small models of `benchmarks.broken_runs` (a run of each kind and seed), one thread, two to
four seconds each on a quiet core; runs already in FILE are not trained again. The thresholds of
`studies.diagnosis` were chosen on seeds 0 to 7 and 1000 to 1019; the table is of others.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import statistics
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.broken_runs import KINDS, RecordedRun, demo_tokens, record
from benchmarks.common import ROOT, about, write_results
from studies.diagnosis.curves import COLUMNS, Curve
from studies.diagnosis.diagnose import diagnose
from studies.diagnosis.facts import CurveFacts
from studies.diagnosis.verdicts import Diagnosis
from trainer.events import RunStatus

LEAK_NATS = 1.0
"""Below the sound run of its seed by this: the model has learnt to use the future."""
ALONE = ("step", "train_loss_nats", "val_loss_nats")


def train_missing(path: Path, seeds: range) -> None:
    """Append the runs that the file lacks."""
    import torch

    torch.set_num_threads(1)
    present = set(read_runs(path)) if path.exists() else set()
    tokens = demo_tokens()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        for seed in seeds:
            for kind in KINDS:
                if (kind, seed) in present:
                    continue
                run = record(kind, seed, tokens)
                file.write(json.dumps(dataclasses.asdict(run)) + "\n")
                file.flush()
            print(f"seed {seed} done", flush=True)


def read_runs(path: Path) -> dict[tuple[str, int], RecordedRun]:
    """Runs by kind and seed."""
    with path.open(encoding="utf-8") as file:
        runs = [RecordedRun(**json.loads(line)) for line in file]
    return {(run.kind, run.seed): run for run in runs}


def judge(run: RecordedRun, *, alone: bool = False) -> Diagnosis:
    """The diagnosis of a run; `alone`: from steps and losses, with nothing known beside them."""
    names = ALONE if alone else COLUMNS
    rows = [tuple(p.get(c) if c in names else None for c in COLUMNS) for p in run.points]
    failure = "training loss became nan" if run.status == RunStatus.FAILED else None
    facts = CurveFacts(failure=failure)
    if not alone:
        facts = CurveFacts.of_config(run.config, failure=failure)
    return diagnose(Curve.of_rows(rows), facts)


def table(runs: list[RecordedRun], *, alone: bool = False) -> dict[str, dict[str, Any]]:
    """By kind: how often each verdict came first, and how often the right one was named at all."""
    found: dict[str, dict[str, Any]] = {}
    for kind in KINDS:
        names = [
            [v.name for v in judge(run, alone=alone).verdicts] for run in runs if run.kind == kind
        ]
        found[kind] = {
            "n": len(names),
            "first": dict(Counter(n[0] if n else "none" for n in names).most_common()),
            "named": sum(kind in n for n in names),
        }
    return found


def wilson(hits: int, n: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927)."""
    z, share = 1.96, hits / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return max(0.0, middle - half), min(1.0, middle + half)


def harm(runs: list[RecordedRun]) -> dict[str, list[float]]:
    """Final validation loss over that of the sound run of the same seed: low, median, high."""
    sound = {run.seed: run.val_loss_nats for run in runs if run.kind == "healthy"}
    found = {}
    for kind in KINDS[1:]:
        gaps = [
            run.val_loss_nats - other
            for run in runs
            if run.kind == kind
            and run.val_loss_nats is not None
            and (other := sound.get(run.seed)) is not None
        ]
        found[kind] = [min(gaps), statistics.median(gaps), max(gaps)] if gaps else []
    return found


def leaks(runs: list[RecordedRun]) -> dict[str, list[int]]:
    """Runs without a mask, and those named, by whether the model had learnt to use the future."""
    sound = {run.seed: run.val_loss_nats for run in runs if run.kind == "healthy"}
    found = {"used": [0, 0], "not_used": [0, 0]}
    for run in runs:
        other = sound.get(run.seed)
        if run.kind != "leak" or run.val_loss_nats is None or other is None:
            continue
        entry = found["used" if other - run.val_loss_nats >= LEAK_NATS else "not_used"]
        entry[0] += 1
        entry[1] += any(verdict.name == "leak" for verdict in judge(run).verdicts)
    return found


def milliseconds(runs: list[RecordedRun]) -> list[float]:
    """CPU time of a diagnosis: median and largest, over all runs."""
    times = []
    for run in runs:
        rows = [tuple(point.get(name) for name in COLUMNS) for point in run.points]
        curve, facts = Curve.of_rows(rows), CurveFacts.of_config(run.config)
        begun = time.process_time()
        diagnose(curve, facts)
        times.append(1e3 * (time.process_time() - begun))
    return [statistics.median(times), max(times)]


def to_markdown(result: dict[str, Any]) -> str:
    """The result as tables."""
    lines = [
        "# Verdicts on runs broken on purpose",
        "",
        f"`{result['command']}` at {result['commit']}, {result['machine']}. Runs of seeds "
        f"{result['seeds']}, none of which chose a threshold; byte models of width 24 to 48, 1 or "
        "2 layers, 160 to 620 steps on Python's standard library (`benchmarks/broken_runs.py`). "
        "*First*: the gravest verdict is the right one; *named*: it is among the verdicts; in "
        "brackets the 95 % interval (Wilson). *Harm*: final validation loss over that of the "
        "sound run of the same seed, nats: smallest, median, largest.",
        "",
    ]
    for title, key in (
        ("With the run's configuration, rate and gradient norm", "full"),
        ("From steps and losses alone (a bare CSV)", "alone"),
    ):
        lines += [f"## {title}", ""]
        lines += [
            "| broken in this way | n | right one first | named | what else came first | harm |",
            "| --- | ---: | ---: | ---: | --- | ---: |",
        ]
        for kind, entry in result[key].items():
            n, first = entry["n"], entry["first"].get(kind, 0)
            low, high = wilson(first, n)
            other = ", ".join(f"{v} {k}" for k, v in entry["first"].items() if k != kind) or "–"
            harmed = result["harm_nats"].get(kind)
            told = " / ".join(f"{value:+.2f}" for value in harmed) if harmed else "–"
            lines.append(
                f"| {kind} | {n} | {first} ({100 * low:.0f} to {100 * high:.0f} %) | "
                f"{entry['named']} | {other} | {told} |"
            )
        lines.append("")
    (used, named), (unused, named_unused) = result["leaks"]["used"], result["leaks"]["not_used"]
    lines += [
        f"Of the {used} runs without a mask that ended at least {LEAK_NATS:g} nat below the sound "
        f"run of their seed, {named} were found; of the {unused} that had not yet learnt to use "
        f"the future, {named_unused}.",
        "",
    ]
    median_ms, most_ms = result["milliseconds"]
    lines += [
        f"CPU time of a diagnosis: {median_ms:.1f} ms (median of {result['n_runs']}; "
        f"largest {most_ms:.1f}).",
        "",
    ]
    return "\n".join(lines)


def main() -> int:
    """Train what is missing, judge, print and store."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=Path, default=Path("diagnosis-runs.jsonl"))
    parser.add_argument("--seeds", default="2000:2020", help="FROM:TO")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    arguments = parser.parse_args()
    first, last = map(int, arguments.seeds.split(":"))
    seeds = range(first, last)
    train_missing(arguments.runs, seeds)
    runs = [run for (_, seed), run in read_runs(arguments.runs).items() if seed in seeds]
    result = {
        **about(" ".join(["python -m benchmarks.diagnosis", *sys.argv[1:]])),
        "seeds": f"{first} to {last - 1}",
        "n_runs": len(runs),
        "full": table(runs),
        "alone": table(runs, alone=True),
        "harm_nats": harm(runs),
        "leaks": leaks(runs),
        "milliseconds": milliseconds(runs),
    }
    text = to_markdown(result)
    write_results(arguments.out, "diagnosis", result, text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
