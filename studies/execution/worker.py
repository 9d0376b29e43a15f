"""A warm worker: one process that runs many training runs for a dispatcher.

It talks over one pipe and touches no database. It dies with its dispatcher: when the pipe breaks,
the run in hand writes a checkpoint and the process ends. A lock on the run's folder keeps a
successor out until then.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from budgetsweep.errors import CheckpointError, ConfigError, UserError
from trainer.config import RunConfig
from trainer.events import Command, DeviceInfo, Point, Progress, RunResult, RunStatus

if TYPE_CHECKING:
    from trainer.data.shards.tokens import TokenData
    from trainer.events import Checkpointed

LOCK_WAIT_SECONDS = 60.0
"""How long a run waits for the worker of a killed dispatcher to let go of its folder."""


@dataclass(frozen=True)
class StartRun:
    """Dispatcher to worker: train this."""

    run_id: int
    config: RunConfig
    run_dir: str
    wait_for_verdict: bool
    """Whether to wait after each validation for `Verdict` (pruning)."""


@dataclass(frozen=True)
class Measure:
    """Dispatcher to worker: how fast is this configuration here?"""

    config: RunConfig
    seconds: float


@dataclass(frozen=True)
class Verdict:
    """Dispatcher to worker: the answer to a validation point, or an unasked command."""

    run_id: int
    command: Command | Literal["continue"]


@dataclass(frozen=True)
class Ready:
    """Worker to dispatcher: started, on this device."""

    device: DeviceInfo


@dataclass(frozen=True)
class NoDevice:
    """Worker to dispatcher, in place of `Ready`: there is no such device."""

    reason: str


@dataclass(frozen=True)
class Measured:
    """Worker to dispatcher: training tokens a second (None: it failed, with the reason)."""

    tokens_per_second: float | None
    reason: str | None = None


@dataclass(frozen=True)
class RunEvent:
    """Worker to dispatcher: something happened in a run, `RunResult` last.

    A result that is interrupted with a reason was stopped by its surroundings (no room on the disk,
    changed text, a folder in use), which would stop other runs too.
    """

    run_id: int
    event: Progress | Point | Checkpointed | RunResult


class _DispatcherGone(Exception):
    """The pipe broke: nobody is there to report to."""


def worker_main(
    connection: Connection, device: str, threads: int, cache_dir: Path | None, folder: Path
) -> None:
    """Entry point of a worker process; returns when told to stop (None) or left alone.

    Args:
        connection: the worker's end of a duplex pipe.
        device: `cpu`, `cuda:1`, … or `auto`.
        threads: arithmetic threads of this worker.
        cache_dir: where prepared tokens lie; None: the default.
        folder: the dispatcher's working directory, for relative paths.
    """
    os.chdir(folder)
    for name in (signal.SIGINT, signal.SIGTERM):  # they reach us through the dispatcher
        signal.signal(name, signal.SIG_IGN)
    from trainer.hardware.device import configure_threads, detect_device, settle_device

    configure_threads(threads)
    # BrokenPipeError, EOFError, ConnectionResetError: the dispatcher died while we were idle.
    with contextlib.suppress(OSError, EOFError, _DispatcherGone):
        try:
            settle_device(device)
            ready = Ready(detect_device(device))
        except ConfigError as error:
            connection.send(NoDevice(str(error)))
            return
        connection.send(ready)
        opened: dict[str, TokenData] = {}
        while (message := connection.recv()) is not None:
            if isinstance(message, Measure):
                connection.send(_measure(message))
            elif isinstance(message, StartRun):
                _run(connection, message, opened, cache_dir)


def _measure(message: Measure) -> Measured:
    from trainer.hardware.device import release_gpu_memory
    from trainer.throughput import measure_tokens_per_second

    try:
        return Measured(measure_tokens_per_second(message.config, message.seconds))
    except (RuntimeError, MemoryError, UserError) as error:  # RuntimeError: CUDA out of memory
        return Measured(None, _one_line(error))
    finally:
        release_gpu_memory()


def _run(
    connection: Connection,
    message: StartRun,
    opened: dict[str, TokenData],
    cache_dir: Path | None,
) -> None:
    from trainer.data.prepare import open_prepared
    from trainer.hardware.device import release_gpu_memory
    from trainer.loop import train_run

    run_dir = Path(message.run_dir)
    config = message.config
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        key = f"{config.tokenizer_encoding} {config.data.model_dump_json()}"
        if key not in opened:
            opened.clear()  # one data set at a time: a study has one
            opened[key] = open_prepared(config.data, config.tokenizer_encoding, cache_dir)
        run = train_run(config, opened[key], run_dir)
        with _locked(run_dir):
            result = _drive(connection, message, run)
    except _DispatcherGone:
        raise
    except (UserError, OSError) as error:  # a full disk, say: not this configuration's fault
        result = _ended(message, RunStatus.INTERRUPTED, _one_line(error))
    except Exception as error:  # noqa: BLE001 - a defect in one run must not end the search
        traceback.print_exc(file=sys.stderr)
        result = _ended(
            message, RunStatus.FAILED, f"defect: {type(error).__name__}: {_one_line(error)}"
        )
    release_gpu_memory()  # other workers may share the GPU
    connection.send(RunEvent(message.run_id, result))


def _drive(connection: Connection, message: StartRun, run: Iterator[object]) -> RunResult:
    """Pass events up and commands down until the run returns its result."""
    command: Command | None = None
    gone = False
    while True:
        try:
            event = run.send(command)  # type: ignore[attr-defined]
        except StopIteration as stop:
            if gone:
                raise _DispatcherGone from None
            return stop.value
        command = None
        if gone:
            continue
        try:
            connection.send(RunEvent(message.run_id, event))
            asked = _asks(message, event)
            while command is None and (asked or connection.poll()):
                answer = connection.recv()
                if answer is None:  # stop for good: keep the work first
                    command = "interrupt"
                elif isinstance(answer, Verdict) and answer.run_id == message.run_id:
                    command = None if answer.command == "continue" else answer.command
                    asked = False
        except (OSError, EOFError):
            command, gone = "interrupt", True


def _asks(message: StartRun, event: object) -> bool:
    return (
        message.wait_for_verdict
        and isinstance(event, Point)
        and event.val_loss_nats is not None
        and event.step < message.config.steps
    )


@contextlib.contextmanager
def _locked(run_dir: Path) -> Iterator[None]:
    """Hold the run's folder; wait for a worker that outlived its dispatcher."""
    try:
        import fcntl
    except ImportError:  # Windows: one dispatcher at a time is kept by the study's lease
        yield
        return
    deadline = time.monotonic() + LOCK_WAIT_SECONDS
    with (run_dir / ".lock").open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise CheckpointError(
                        f"{run_dir}: another process still trains in this folder; stop it first"
                    ) from None
                time.sleep(0.1)
        yield


def _ended(message: StartRun, status: RunStatus, reason: str) -> RunResult:
    """A result with what the meter says; a folder that cannot be read says nothing."""
    from trainer.flop_meter import read_executed_steps

    executed = 0
    with contextlib.suppress(UserError):
        executed = read_executed_steps(Path(message.run_dir))
    step = min(executed, message.config.steps)
    return RunResult(
        status=status,
        step=step,
        steps_executed=executed,
        tokens=step * message.config.tokens_per_step,
        reason=reason,
    )


def _one_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:500]
