"""Progress on the screen: a live view on a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import time
from collections import Counter

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from budgetsweep.constraint import Rejected
from budgetsweep.formats import count, duration, flops
from studies.database.run_kind import RunKind
from studies.trackers.base import Observer, RunView, Session
from trainer.events import Point, Progress, RunResult, RunStatus

PLAIN_SECONDS = 10.0
"""Without a terminal a line of progress appears no more often than this."""


class Terminal(Observer):
    """Progress of a search, a promotion or one run."""

    def __init__(self, job: Session, console: Console) -> None:
        self._job = job
        self._console = console
        self._n_done = job.n_done
        self._running: dict[int, tuple[RunView, Progress | None]] = {}
        self._spent = 0
        self._best: float | None = None
        self._rejected: Counter[str] = Counter()
        self._last_rejection = ""
        self._started = time.monotonic()
        self._last_line = self._started
        self._live: Live | None = None

    def message(self, text: str) -> None:
        """A line worth reading."""
        self._console.print(Text(text))

    def run_started(self, run: RunView) -> None:
        """Remember the run; say so when it is continued."""
        self._running[run.run_id] = (run, None)
        if run.resumed_at_step:
            self.message(f"{run.name} continues from step {run.resumed_at_step:,}")
        elif run.kind == RunKind.PROMOTION:
            self.message(f"{run.name} starts")

    def run_progress(self, run: RunView, progress: Progress) -> None:
        """Remember where the run is."""
        self._running[run.run_id] = (run, progress)

    def run_point(self, run: RunView, point: Point) -> None:
        """Long runs say their validation losses as they come."""
        if run.kind != RunKind.TRIAL and point.val_loss_nats is not None:
            self.message(
                f"  step {point.step:,}/{run.config.steps:,}  val loss {point.val_loss_nats:.4f}  "
                f"PPL {math.exp(point.val_loss_nats):,.1f}"
            )

    def run_ended(self, run: RunView, result: RunResult, best_val_loss_nats: float | None) -> None:
        """One line a run."""
        self._running.pop(run.run_id, None)
        self._best = best_val_loss_nats
        if result.status == RunStatus.INTERRUPTED:
            return
        is_trial = run.kind == RunKind.TRIAL
        self._n_done += is_trial
        self._spent += run.planned_flops * result.steps_executed // max(1, run.config.steps)
        outcome = f"{result.status}: {result.reason or ''}"
        if result.val_loss_nats is not None and result.status == RunStatus.COMPLETE:
            outcome = (
                f"val loss {result.val_loss_nats:.4f}  PPL {math.exp(result.val_loss_nats):,.1f}"
            )
            if is_trial and result.val_loss_nats == best_val_loss_nats:
                outcome += "  best so far"
            if result.reason is not None:  # which run of a table it stands for
                outcome += f"  {result.reason}"
        where = f"{self._n_done}/{self._job.n_trials}  " if is_trial else ""
        self.message(
            f"{where}{run.name}  {outcome}  "
            f"({count(run.config.n_params)} params, {count(result.tokens)} tokens, "
            f"{duration(result.train_seconds + result.eval_seconds)})"
            + self._time_left("  about {} left")
        )

    def rejected(self, number: int, rejection: Rejected) -> None:
        """Count; the reasons stand in the live view, in `status` and in the report."""
        self._rejected[rejection.reason.value] += 1
        self._last_rejection = f"proposal {number}: {rejection.detail}"

    def tick(self) -> None:
        """Redraw, or without a terminal say where things are now and then."""
        if self._console.is_terminal:
            if self._live is None:  # with the first trial: a question may come before it
                self._live = Live(console=self._console, refresh_per_second=4, transient=True)
                self._live.start()
            self._live.update(self._view())
        elif time.monotonic() - self._last_line > PLAIN_SECONDS:
            self._last_line = time.monotonic()
            for run, progress in self._running.values():
                if progress is not None:
                    self.message(f"  {run.name}: {_progress_line(run, progress)}")

    def close(self) -> None:
        """Take the live view off the screen."""
        if self._live is not None:
            self._live.stop()

    def _time_left(self, words: str) -> str:
        """How long the search takes yet, in these words; nothing where that is not known."""
        done, total = self._n_done - self._job.n_done, self._job.n_trials
        if done <= 0 or total is None or self._n_done >= total:
            return ""
        seconds = (time.monotonic() - self._started) / done * (total - self._n_done)
        return words.format(duration(seconds))

    def _head(self) -> str:
        job = self._job
        if job.n_trials is None:
            return job.title
        best = "-" if self._best is None else f"{self._best:.4f} (PPL {math.exp(self._best):,.1f})"
        return (
            f"{job.title}   {self._n_done}/{job.n_trials} trials   best {best}   "
            f"{flops(self._spent)} FLOPs spent now, {flops(job.budget_flops or 0)} a trial at most"
            + self._time_left("   about {} left")
        )

    def _view(self) -> Group:
        table = Table.grid(padding=(0, 2))
        for run, progress in self._running.values():
            if progress is None:
                table.add_row(run.name, "starting", "")
                continue
            bar = ProgressBar(total=progress.num_steps, completed=progress.step, width=24)
            table.add_row(run.name, bar, _progress_line(run, progress))
        lines: list[RenderableType] = [Text(self._head()), table]
        if self._rejected:
            reasons = ", ".join(f"{name} {n}" for name, n in self._rejected.most_common())
            lines.append(Text(f"rejected: {reasons}; last: {self._last_rejection}", style="dim"))
        return Group(*lines)


def _progress_line(run: RunView, progress: Progress) -> str:
    planned = run.config.total_tokens
    left = (progress.num_steps - progress.step) * planned / progress.num_steps
    speed = progress.tokens_per_second
    remaining = f", about {duration(left / speed)} left" if speed > 0 else ""
    return (
        f"{100 * progress.step / progress.num_steps:.0f} % of {count(planned)} tokens, "
        f"{count(speed)} tokens/s{remaining}"
    )
