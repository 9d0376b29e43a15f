"""Trackers: what each hears, that one which fails stops nothing, and what a screen shows."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from studies.trackers import TRACKERS, track
from studies.trackers.base import Observer, RunView, Session
from studies.trackers.composite import Composite
from tests.support.tiny_runs import tiny_config
from trainer.events import Point, Progress, RunResult

VIEW = RunView(1, "trial", 3, {"n_embd": 16}, tiny_config(), 10**9)
RESULT = RunResult("complete", 40, 40, 1280, val_loss_nats=2.0, train_seconds=3.0)


class Fragile(Observer):
    """Fails at one kind of event."""

    def __init__(self, event: str) -> None:
        self.told: list[str] = []
        setattr(self, event, self.fail)

    def fail(self, *_: Any) -> None:
        raise OSError("no route\nto host")

    def message(self, text: str) -> None:
        self.told.append(text)

    def run_started(self, run: RunView) -> None:
        self.told.append(f"{run.name}: {run.config.max_lr}")


def tell_all(observer: Observer) -> None:
    """One of each event."""
    observer.run_started(VIEW)
    observer.run_progress(VIEW, Progress(20, 40, 640, 100.0))
    observer.run_point(VIEW, Point(20, 640, 10**6, 1.0, val_loss_nats=3.0))
    observer.run_ended(VIEW, RESULT, 2.0)
    observer.tick()


@pytest.mark.parametrize("event", ["run_started", "run_progress", "run_point", "run_ended", "tick"])
def test_a_tracker_that_fails_is_dropped_with_one_line(event: str) -> None:
    sound, broken = Fragile("rejected"), Fragile(event)
    both = Composite([broken, sound])
    tell_all(both)
    tell_all(both)
    (line,) = [told for told in sound.told if "dropped" in told]
    assert line == "tracker Fragile failed and is dropped: no route to host"
    assert sound.told.count(f"trial 3: {VIEW.config.max_lr}") == 2


def test_the_last_tracker_that_fails_says_so_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    alone = Composite([Fragile("message")])
    alone.message("hello")
    alone.message("nobody listens")
    assert capsys.readouterr().err.count("\n") == 1


def test_trackers_are_closed_at_the_end() -> None:
    class Closing(Observer):
        closed = False

        def close(self) -> None:
            self.closed = True

    closing = Closing()
    with pytest.raises(KeyboardInterrupt), Composite([Fragile("close"), closing]):
        raise KeyboardInterrupt
    assert closing.closed


def test_a_screen_without_a_terminal_has_one_line_a_trial() -> None:
    screen = io.StringIO()
    job = Session("c4-1e15", budget_flops=10**9, n_trials=4, n_done=1)
    with track(job, Console(file=screen, width=200), names=list(TRACKERS)) as trackers:
        tell_all(trackers)
    assert screen.getvalue().startswith("2/4  trial 3  val loss 2.0000  PPL 7.4  best so far  (")
    assert screen.getvalue().count("\n") == 1


def test_a_run_of_no_study_has_the_name_of_its_folder_and_says_each_loss() -> None:
    screen = io.StringIO()
    view = RunView(0, "run", None, {}, tiny_config(output_dir="out/[red]"), 10**9)
    with track(Session("out"), Console(file=screen, width=200)) as trackers:
        trackers.run_point(view, Point(20, 640, 10**6, 1.0, val_loss_nats=3.0))
        trackers.run_ended(view, RESULT, 2.0)
    point, end = screen.getvalue().splitlines()
    assert "val loss 3.0000" in point
    assert end.startswith("out/[red]  val loss 2.0000")


def test_a_terminal_shows_where_runs_are() -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=120, color_system=None)
    with track(Session("c4-1e15", 10**9, 4), console) as trackers:
        trackers.run_started(VIEW)
        trackers.run_progress(VIEW, Progress(20, 40, 640, 100.0))
        trackers.tick()
    assert "0/4 trials" in screen.getvalue()
    assert "50 % of" in screen.getvalue()
