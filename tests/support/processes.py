"""Processes that do the same thing at the same moment."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run_at_once(imports: str, body: str, folder: Path, names: str) -> list[str]:
    """What a process for each letter of `names` says on stderr.

    All have imported before the first begins with `body`, where `folder` is the folder and `name`
    the letter.
    """
    code = f"""
import pathlib, sys, time
{imports}
folder, name = pathlib.Path(sys.argv[1]), sys.argv[2]
print("ready", flush=True)
while not (folder / "go").exists(): time.sleep(0.001)
{body}
"""
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(folder), name],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for name in names
    ]  # fmt: skip
    for worker in workers:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "ready\n"
    (folder / "go").touch()
    return [worker.communicate(timeout=60)[1] for worker in workers]
