"""What Ctrl-C means to a command that trains."""

from __future__ import annotations

import signal
from typing import Any, Self

import click


class Signals:
    """Within the block, Ctrl-C (or SIGTERM) once: stop after saving. Twice: stop now."""

    def __init__(self) -> None:
        self._count = 0
        self._before: dict[signal.Signals, Any] = {}

    def should_stop(self) -> bool:
        """Whether a signal has come."""
        return self._count >= 1

    def should_kill(self) -> bool:
        """Whether a second one has."""
        return self._count >= 2

    def _handle(self, number: int, frame: object) -> None:
        del number, frame
        self._count += 1
        if self._count == 1:
            click.echo("\nfinishing the checkpoint; once more to stop at once", err=True)

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
