"""The screen that commands print to: plain text, tables and progress."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table

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


def columns(*heads: str | Column) -> Table:
    """A table without lines."""
    return Table(*heads, box=None, pad_edge=False)


def framed(console: Console, *heads: Column) -> Table:
    """A table with a frame on a terminal."""
    return Table(*heads, box=box.ROUNDED) if console.is_terminal else columns(*heads)


def number_table(console: Console, *heads: str) -> Table:
    """A table of numbers beside their names."""
    justified = (Column(head, justify="right" if i else "left") for i, head in enumerate(heads))
    return framed(console, *justified)


def visible(text: str, console: Console) -> str:
    """Text that leaves the terminal alone: control characters and line ends as escapes."""
    escaped = "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text
    )
    return escaped.encode(console.encoding, errors="replace").decode(console.encoding)


def settings_text(settings: Mapping[str, Any]) -> str:
    """`n_embd=64 max_lr=0.01`, numbers short."""
    return " ".join(
        f"{name}={value:.3g}" if isinstance(value, float) else f"{name}={value}"
        for name, value in settings.items()
    )


def prepare_display(console: Console) -> Callable[[PrepareProgress], None]:
    """What prints a line about the progress of tokenising now and then."""
    last = time.monotonic()
    pause, end = (1.0, "\r") if console.is_terminal else (PLAIN_SECONDS, "\n")

    def show(progress: PrepareProgress) -> None:
        nonlocal last
        if time.monotonic() - last < pause:
            return
        last = time.monotonic()
        left = progress.seconds_left
        wanted = f" of {count(progress.wanted_tokens)}" if progress.wanted_tokens else ""
        console.print(
            f"preparing data: {count(progress.documents)} documents, "
            f"{count(progress.tokens)}{wanted} tokens, {count(progress.tokens_per_second)} tokens/s"
            + (f", about {duration(left)} left" if left else ""),
            end=end,
        )

    return show


@contextmanager
def work_display(
    console: Console, *, total: int, verb: str, unit: str
) -> Iterator[Callable[[int], None]]:
    """Progress of work that is counted: a bar on a terminal, a line now and then elsewhere.

    Yields what is called with the number that is done.
    """
    started = last = time.monotonic()

    def line(done: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < PLAIN_SECONDS:
            return
        last = now
        left = duration((now - started) / done * (total - done))
        console.print(f"{verb}: {done:,} of {total:,} {unit}, about {left} left")

    if not console.is_terminal:
        yield line
        return
    bar = Progress(
        TextColumn(verb), BarColumn(), TextColumn(f"{{task.completed:,}} {unit}"),
        TimeRemainingColumn(), console=console, transient=True,
    )  # fmt: skip
    task = bar.add_task("", total=total)
    with bar:
        yield lambda done: bar.update(task, completed=done)
