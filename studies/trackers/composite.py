"""Several observers as one. One that fails is dropped; the work goes on."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Sequence
from typing import Any, Self

from studies.trackers.base import Observer


class Composite(Observer):
    """Tells each of its observers every event; a context manager that closes them."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        self._observers = list(observers)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

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


def _forwarding(event: str) -> Callable[..., None]:
    return lambda self, *facts: self._tell(event, *facts)


for _event in [name for name in vars(Observer) if not name.startswith("_")]:
    setattr(Composite, _event, _forwarding(_event))
