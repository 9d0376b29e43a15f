"""Which code and libraries made a number."""

from __future__ import annotations

import functools
import os
import platform
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

import budgetsweep

LIBRARIES = ("torch", "optuna", "numpy")

_GIT_SECONDS = 5.0


def git_commit() -> str | None:
    """Commit of the code in use, with `-dirty` where tracked files had changed.

    The repository is that of this package where it runs from a checkout (its files are tracked);
    otherwise that of the current directory, where the user's configurations are. None: neither
    is a repository with a commit, git is missing, or it does not answer within seconds. Read once
    a process and directory: code that is loaded does not change under an edit.
    """
    return _git_commit(Path.cwd())


@functools.cache
def _git_commit(directory: Path) -> str | None:
    source = Path(__file__).resolve()
    if _git(source.parent, "ls-files", "--error-unmatch", source.name) is not None:
        directory = source.parent
    # No tag matches, so describe prints the full hash: commit and dirtiness in one call.
    return _git(directory, "describe", "--always", "--dirty", "--abbrev=64", "--exclude=*") or None


def _git(directory: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=directory,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_GIT_SECONDS,
            check=False,
            # Reading must not take the index lock from a git command of the user's.
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


@functools.cache
def versions() -> Mapping[str, str]:
    """Versions of Python and `LIBRARIES`, from their metadata (nothing is imported)."""
    found = {"python": platform.python_version(), "budgetsweep": budgetsweep.__version__}
    return found | {name: metadata.version(name) for name in LIBRARIES}
