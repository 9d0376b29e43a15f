"""Commands as a user types them, in the process of the test."""

from __future__ import annotations

import json
from typing import Any

from click.testing import CliRunner

from budgetsweep.cli.main import cli


def run(*words: str) -> str:
    """What a command prints; it must succeed."""
    done = CliRunner().invoke(cli, words)
    assert done.exit_code == 0, done.output
    return done.output


def run_json(*words: str) -> Any:
    """What a command prints with --json, which must be nothing else."""
    return json.loads(run(*words, "--json"))


def usage_error(*words: str) -> str:
    """What a command prints that does not understand its words."""
    done = CliRunner().invoke(cli, words)
    assert done.exit_code == 2
    assert "Error: " in done.output
    return done.output
