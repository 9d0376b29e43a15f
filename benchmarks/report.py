"""Time and memory of a report of 1,000 trials with 50 points each.

    python -m benchmarks.report [--trials 1000] [--points 50] [--repeats 5] [--out FOLDER]

The study is synthetic (`tests/support/synthetic_study.py`), the report real: each repeat is a fresh
process from the start of the interpreter to the last file. Peak memory is that process's resident
set. CPU seconds are given beside the clock's, which other work on the machine disturbs.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT, about, write_results

LIMIT_SECONDS = 15.0
LIMIT_BYTES = 1 << 30

CHILD = """
import json, resource, sys
from pathlib import Path
from reports.build import build_report
files = build_report(sys.argv[1], None, Path(sys.argv[2]))
usage = resource.getrusage(resource.RUSAGE_SELF)
unit = 1 if sys.platform == "darwin" else 1024
print(json.dumps({
    "cpu_seconds": usage.ru_utime + usage.ru_stime,
    "peak_memory_bytes": usage.ru_maxrss * unit,
    "html_bytes": files.html.stat().st_size,
}))
"""


def measure(database: Path, out_dir: Path) -> dict[str, float]:
    """One report in a process of its own."""
    begun = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(database), str(out_dir)],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    seconds = time.perf_counter() - begun
    return {"seconds": seconds, **json.loads(done.stdout)}


def spread(values: list[float], digits: int = 1) -> str:
    """Median (smallest to largest)."""
    middle, low, high = statistics.median(values), min(values), max(values)
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def to_markdown(result: dict[str, Any]) -> str:
    """The result as a table."""
    repeats = result["repeats"]
    mib = [r["peak_memory_bytes"] / (1 << 20) for r in repeats]
    verdict = "within" if result["ok"] else "OVER"
    return "\n".join(
        [
            f"# Report of {result['trials']:,} trials × {result['points']} points",
            "",
            f"`{result['command']}` at {result['commit']}, {result['machine']}; n = "
            f"{len(repeats)}, median (smallest to largest); load average {result['load']}.",
            "",
            "| | measured | limit |",
            "| --- | ---: | ---: |",
            f"| wall time, s | {spread([r['seconds'] for r in repeats])} | {LIMIT_SECONDS:.0f} |",
            f"| CPU time, s | {spread([r['cpu_seconds'] for r in repeats])} | |",
            f"| peak memory, MiB | {spread(mib, 0)} | {LIMIT_BYTES >> 20} |",
            f"| report.html, MB | {repeats[0]['html_bytes'] / 1e6:.1f} | |",
            "",
            f"Every repeat {verdict} the limits.",
            "",
        ]
    )


def main() -> int:
    """Write the study, report it several times, print and store what that took."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--points", type=int, default=50)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    arguments = parser.parse_args()
    from tests.support.synthetic_study import fill_database

    with tempfile.TemporaryDirectory() as folder:
        database = Path(folder) / "study.db"
        fill_database(
            f"sqlite:///{database}", trials=arguments.trials, points=arguments.points, evals=10,
            rejections=arguments.trials // 3, failed=arguments.trials // 50,
        )  # fmt: skip
        measure(database, Path(folder) / "warm")  # font cache, byte code, file cache
        repeats = [
            measure(database, Path(folder) / f"report-{index}")
            for index in range(arguments.repeats)
        ]
    ok = all(r["seconds"] < LIMIT_SECONDS and r["peak_memory_bytes"] < LIMIT_BYTES for r in repeats)
    result = {
        **about(" ".join(["python -m benchmarks.report", *sys.argv[1:]])),
        "trials": arguments.trials,
        "points": arguments.points,
        "load": f"{os.getloadavg()[0]:.1f}",
        "limit_seconds": LIMIT_SECONDS,
        "limit_bytes": LIMIT_BYTES,
        "repeats": repeats,
        "ok": ok,
    }
    text = to_markdown(result)
    write_results(arguments.out, "report", result, text)
    print(text)
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
