"""Several observers as one. One that fails is dropped; the work goes on."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from typing import Any, Self

from budgetsweep.constraint import Rejected
from studies.trackers.base import Observer, RunView
from trainer.events import Point, Progress, RunResult


class Composite(Observer):
    """Tells each of its observers everything; a context manager that closes them."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        self._observers = list(observers)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def message(self, text: str) -> None:
        """See `Observer`."""
        self._tell("message", text)

    def run_started(self, run: RunView) -> None:
        """See `Observer`."""
        self._tell("run_started", run)

    def run_progress(self, run: RunView, progress: Progress) -> None:
        """See `Observer`."""
        self._tell("run_progress", run, progress)

    def run_point(self, run: RunView, point: Point) -> None:
        """See `Observer`."""
        self._tell("run_point", run, point)

    def run_ended(self, run: RunView, result: RunResult, best_val_loss_nats: float | None) -> None:
        """See `Observer`."""
        self._tell("run_ended", run, result, best_val_loss_nats)

    def rejected(self, number: int, rejection: Rejected) -> None:
        """See `Observer`."""
        self._tell("rejected", number, rejection)

    def tick(self) -> None:
        """See `Observer`."""
        self._tell("tick")

    def close(self) -> None:
        """See `Observer`."""
        self._tell("close")

    def _tell(self, event: str, *facts: Any) -> None:
        for observer in tuple(self._observers):
            try:
                getattr(observer, event)(*facts)
            except Exception as error:  # noqa: BLE001 - whoever watches must not stop the work
                self._drop(observer, error)

    def _drop(self, observer: Observer, error: Exception) -> None:
        self._observers.remove(observer)
        why = " ".join(str(error).split()) or "no reason given"
        line = f"tracker {type(observer).__name__} failed and is dropped: {why[:200]}"
        if self._observers:
            self.message(line)
        else:
            with contextlib.suppress(OSError):
                sys.stderr.write(f"{line}\n")
