"""The screen that commands print to: plain text, tables and progress."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from budgetsweep.formats import count, duration
from studies.trackers.terminal import PLAIN_SECONDS

if TYPE_CHECKING:
    from trainer.data.shards.progress import PrepareProgress


def new_console(**settings: Any) -> Console:
    """The console of a command. It prints text as it is: no markup, no highlighting."""
    console = Console(soft_wrap=True, markup=False, highlight=False, emoji=False, **settings)
    if not console.is_terminal:
        console.width = 200  # files and pipes have no edge to wrap at
    return console


def columns(*heads: str) -> Table:
    """A table without lines."""
    return Table(*heads, box=None, pad_edge=False)


def number_table(console: Console, *heads: str) -> Table:
    """A table of numbers beside their names, framed on a terminal."""
    table = Table(box=box.ROUNDED) if console.is_terminal else columns()
    for i, head in enumerate(heads):
        table.add_column(head, justify="right" if i else "left")
    return table


def settings_text(settings: Mapping[str, Any]) -> str:
    """`n_embd=64 max_lr=0.01`, numbers short."""
    return " ".join(
        f"{name}={value:.3g}" if isinstance(value, float) else f"{name}={value}"
        for name, value in settings.items()
    )


class PrepareDisplay:
    """Progress of tokenising; call it with each `PrepareProgress`."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._last = 0.0

    def __call__(self, progress: PrepareProgress) -> None:
        """Print a line now and then."""
        now = time.monotonic()
        pause = 1.0 if self._console.is_terminal else PLAIN_SECONDS
        if now - self._last < pause:
            return
        self._last = now
        left = progress.seconds_left
        wanted = f" of {count(progress.wanted_tokens)}" if progress.wanted_tokens else ""
        self._console.print(
            f"preparing data: {count(progress.documents)} documents, "
            f"{count(progress.tokens)}{wanted} tokens, {count(progress.tokens_per_second)} tokens/s"
            + (f", about {duration(left)} left" if left else ""),
            end="\r" if self._console.is_terminal else "\n",
        )


class WorkDisplay:
    """Progress of work that is counted: a bar on a terminal, a line now and then elsewhere."""

    def __init__(self, console: Console, *, total: int, verb: str, unit: str) -> None:
        self._console = console
        self._total = total
        self._verb = verb
        self._unit = unit
        self._started = self._last = time.monotonic()
        self._bar = Progress(
            TextColumn(verb), BarColumn(), TextColumn(f"{{task.completed:,}} {unit}"),
            TimeRemainingColumn(), console=console, transient=True,
        )  # fmt: skip
        self._task = self._bar.add_task("", total=total)

    def __enter__(self) -> WorkDisplay:
        if self._console.is_terminal:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._console.is_terminal:
            self._bar.stop()

    def update(self, done: int, before: int = 0) -> None:
        """`done` units more than `before` are there."""
        done += before
        if self._console.is_terminal:
            self._bar.update(self._task, completed=done)
            return
        now = time.monotonic()
        if now - self._last < PLAIN_SECONDS:
            return
        self._last = now
        left = (now - self._started) / done * (self._total - done)
        self._console.print(
            f"{self._verb}: {done:,} of {self._total:,} {self._unit}, about {duration(left)} left"
        )
