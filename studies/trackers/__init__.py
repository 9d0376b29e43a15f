"""Observers of a search, a promotion or a training run, by name: the terminal, for one.

Nothing here decides or stores anything. A tracker is a file of its own and a line in `TRACKERS`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.console import Console

from studies.trackers.base import Observer, Session
from studies.trackers.composite import Composite
from studies.trackers.terminal import Terminal

TRACKERS: dict[str, Callable[[Session, Console], Observer]] = {"terminal": Terminal}


def track(job: Session, console: Console, names: Sequence[str] = ("terminal",)) -> Composite:
    """The trackers of these names as one observer, to be closed at the end (`with`)."""
    return Composite([TRACKERS[name](job, console) for name in names])
