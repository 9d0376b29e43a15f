"""What the commands show: live progress on a terminal, plain lines elsewhere, tables."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from budgetsweep.constraint import Rejected
from budgetsweep.errors import Reason
from studies.database.run_kind import RunKind
from studies.execution.observer import Observer, RunView
from studies.simulation.worlds import notice
from trainer.events import Point, Progress, RunResult, RunStatus

if TYPE_CHECKING:
    from trainer.data.prepare import PrepareProgress

PLAIN_SECONDS = 10.0
"""Without a terminal a line of progress appears no more often than this."""


class Stopper(Protocol):
    """Says when to stop; `budgetsweep.cli.main.Signals`."""

    def should_stop(self) -> bool:
        """Save and stop."""

    def should_kill(self) -> bool:
        """Stop now."""


def print_notice(console: Console, world: str | None) -> None:
    """Say that figures are simulated, where they are."""
    if world is not None:
        console.print(notice(world), highlight=False, style="bold", markup=False)


def count(number: float) -> str:
    """A large number in a few characters: 1234567 -> `1.23 M`."""
    for limit, unit in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e4, " k")):
        if abs(number) >= limit:
            scale = {" T": 1e12, " G": 1e9, " M": 1e6, " k": 1e3}[unit]
            return f"{number / scale:.3g}{unit}"
    return f"{number:,.0f}"


def flops(number: float) -> str:
    """FLOPs in scientific notation: `1e15`, `9.97e14`."""
    if number <= 0:
        return "0"
    exponent = math.floor(math.log10(number))
    mantissa = f"{number / 10**exponent:.3g}"
    if mantissa == "10":
        mantissa, exponent = "1", exponent + 1
    return f"{mantissa}e{exponent}"


def duration(seconds: float) -> str:
    """A time as a person says it."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 90:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    if seconds < 172_800:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86_400:,.1f} days"


def gib(n_bytes: float) -> str:
    """Bytes in MiB or GiB."""
    return f"{n_bytes / 2**30:.2f} GiB" if n_bytes >= 2**30 else f"{n_bytes / 2**20:.0f} MiB"


def settings_text(settings: Mapping[str, Any]) -> str:
    """`n_embd=64 max_lr=0.01`, numbers short."""
    return " ".join(
        f"{name}={value:.3g}" if isinstance(value, float) else f"{name}={value}"
        for name, value in settings.items()
    )


class RunsDisplay(Observer):
    """Progress of a search or promotion; a context manager."""

    def __init__(
        self, console: Console, *, n_trials: int, n_done: int, budget_flops: int, title: str
    ) -> None:
        self._console = console
        self._n_trials = n_trials
        self._n_done = n_done
        self._n_before = n_done
        self._budget = budget_flops
        self._title = title
        self._running: dict[int, tuple[RunView, Progress | None]] = {}
        self._spent = 0
        self._best: float | None = None
        self._rejected: Counter[Reason] = Counter()
        self._last_rejection = ""
        self._started = time.monotonic()
        self._last_line = self._started
        self._live: Live | None = None
        if console.is_terminal:
            self._live = Live(console=console, refresh_per_second=4, transient=True)

    def __enter__(self) -> RunsDisplay:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def message(self, text: str) -> None:
        """A line worth reading."""
        self._console.print(escape(text), highlight=False)

    def run_started(self, run: RunView) -> None:
        """Remember the run; say so when it is continued."""
        self._running[run.run_id] = (run, None)
        resumed = run.resumed_at_step > 0
        if resumed or run.kind != RunKind.TRIAL:
            how = f"continues from step {run.resumed_at_step:,}" if resumed else "starts"
            self.message(f"{run.name} {how}")

    def run_progress(self, run: RunView, progress: Progress) -> None:
        """Remember where the run is."""
        self._running[run.run_id] = (run, progress)

    def run_point(self, run: RunView, point: Point) -> None:
        """Long runs say their validation losses as they come."""
        if run.kind != RunKind.TRIAL and point.val_loss_nats is not None:
            self.message(
                f"  step {point.step:,}/{run.num_steps:,}  val loss {point.val_loss_nats:.4f}  "
                f"PPL {math.exp(point.val_loss_nats):.1f}"
            )

    def run_ended(self, run: RunView, result: RunResult, best_val_loss_nats: float | None) -> None:
        """One line a run."""
        self._running.pop(run.run_id, None)
        self._best = best_val_loss_nats
        if result.status == RunStatus.INTERRUPTED:
            return
        self._n_done += 1
        self._spent += run.planned_flops * result.steps_executed // max(1, run.num_steps)
        if result.val_loss_nats is not None and result.status == RunStatus.COMPLETE:
            outcome = (
                f"val loss {result.val_loss_nats:.4f}  PPL {math.exp(result.val_loss_nats):,.1f}"
            )
            if run.kind == RunKind.TRIAL and result.val_loss_nats == best_val_loss_nats:
                outcome += "  best so far"
            if result.reason is not None:  # which run of a table it stands for
                outcome += f"  {result.reason}"
        else:
            outcome = f"{result.status}: {result.reason or ''}"
        left = self._seconds_left()
        after = f"  about {duration(left)} left" if left else ""
        where = f"{self._n_done}/{self._n_trials}  " if run.kind == RunKind.TRIAL else ""
        self.message(
            f"{where}{run.name}  {outcome}  "
            f"({count(run.n_params)} params, {count(result.tokens)} tokens, "
            f"{duration(result.train_seconds + result.eval_seconds)}){after}"
        )

    def rejected(self, number: int, rejection: Rejected) -> None:
        """Count; the reasons stand in the live view, in `status` and in the report."""
        self._rejected[rejection.reason] += 1
        self._last_rejection = f"proposal {number}: {rejection.detail}"

    def tick(self) -> None:
        """Redraw, or without a terminal say where things are now and then."""
        if self._live is not None:
            self._live.update(self._view())
        elif time.monotonic() - self._last_line > PLAIN_SECONDS:
            self._last_line = time.monotonic()
            for run, progress in self._running.values():
                if progress is not None:
                    self.message(f"  {run.name}: {self._progress_line(run, progress)}")

    def _progress_line(self, run: RunView, progress: Progress) -> str:
        left = (progress.num_steps - progress.step) * run.planned_tokens / run.num_steps
        speed = progress.tokens_per_second
        remaining = f", about {duration(left / speed)} left" if speed > 0 else ""
        return (
            f"{100 * progress.step / progress.num_steps:.0f} % of "
            f"{count(run.planned_tokens)} tokens, {count(speed)} tokens/s{remaining}"
        )

    def _seconds_left(self) -> float | None:
        done = self._n_done - self._n_before
        if done <= 0 or self._n_done >= self._n_trials:
            return None
        return (time.monotonic() - self._started) / done * (self._n_trials - self._n_done)

    def _view(self) -> Group:
        table = Table.grid(padding=(0, 2))
        for run, progress in self._running.values():
            if progress is None:
                table.add_row(run.name, "starting", "")
                continue
            bar = ProgressBar(total=progress.num_steps, completed=progress.step, width=24)
            table.add_row(run.name, bar, self._progress_line(run, progress))
        best = "-" if self._best is None else f"{self._best:.4f} (PPL {math.exp(self._best):,.1f})"
        left = self._seconds_left()
        head = Text(
            f"{self._title}   {self._n_done}/{self._n_trials} trials   best {best}   "
            f"{flops(self._spent)} FLOPs spent now, {flops(self._budget)} a trial at most"
            + (f"   about {duration(left)} left" if left else "")
        )
        lines: list[Any] = [head, table]
        if self._rejected:
            reasons = ", ".join(f"{name} {n}" for name, n in self._rejected.most_common())
            lines.append(Text(f"rejected: {reasons}; last: {self._last_rejection}", style="dim"))
        return Group(*lines)


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
            f"preparing text: {count(progress.documents)} documents, "
            f"{count(progress.tokens)}{wanted} tokens, {count(progress.tokens_per_second)} tokens/s"
            + (f", about {duration(left)} left" if left else ""),
            highlight=False,
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
        self._bar: Bar | None = None
        if console.is_terminal:
            self._bar = Bar(
                TextColumn(verb), BarColumn(), TextColumn(f"{{task.completed:,}} {unit}"),
                TimeRemainingColumn(), console=console, transient=True,
            )  # fmt: skip
            self._task = self._bar.add_task("", total=total)

    def __enter__(self) -> WorkDisplay:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, done: int, before: int = 0) -> None:
        """`done` units more than `before` are there."""
        done += before
        if self._bar is not None:
            self._bar.update(self._task, completed=done)
            return
        now = time.monotonic()
        if now - self._last < PLAIN_SECONDS:
            return
        self._last = now
        left = (now - self._started) / done * (self._total - done)
        self._console.print(
            f"{self._verb}: {done:,} of {self._total:,} {self._unit}, about {duration(left)} left",
            highlight=False,
        )
