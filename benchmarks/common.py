"""What every benchmark says of itself: machine, commit, versions; and how results are written."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from trainer.hardware.process_memory import cpu_name

ROOT = Path(__file__).resolve().parents[1]


def machine() -> str:
    """Processor, cores and Python."""
    return f"{cpu_name()}, {os.cpu_count()} cores, Python {platform.python_version()}"


def commit() -> str:
    """The commit measured; `-dirty` where files other than results differ from it."""

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
        )
        return done.stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", ":!benchmarks/results")
    return (git("rev-parse", "--short", "HEAD") or "unknown") + ("-dirty" if changed else "")


def about(command: str) -> dict[str, Any]:
    """Facts that stand at the head of each result."""
    names = ("torch", "optuna", "sqlalchemy", "numpy", "tiktoken")
    return {
        "command": command,
        "machine": machine(),
        "commit": commit(),
        "versions": {name: metadata.version(name) for name in names},
    }


def write_results(folder: Path, name: str, result: dict[str, Any], markdown: str) -> None:
    """Write NAME.json and NAME.md."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    (folder / f"{name}.md").write_text(markdown, encoding="utf-8")
