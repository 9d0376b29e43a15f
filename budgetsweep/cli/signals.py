"""What Ctrl-C means to a command that trains."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

import click


class Signals:
    """Ctrl-C (or SIGTERM) once: stop after saving. Twice: stop now."""

    def __init__(self) -> None:
        self._count = 0

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

    @contextmanager
    def caught(self) -> Iterator[Self]:
        """Catch the signals within the block."""
        names = (signal.SIGINT, signal.SIGTERM)
        before = {name: signal.signal(name, self._handle) for name in names}
        try:
            yield self
        finally:
            for name, handler in before.items():
                signal.signal(name, handler)
