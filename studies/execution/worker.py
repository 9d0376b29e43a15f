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
import traceback
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

from budgetsweep.errors import CheckpointError, ConfigError, UserError
from budgetsweep.files import file_lock
from studies.execution.messages import Job, Measured, RunEvent
from trainer.config import RunConfig
from trainer.driver import RunDriver, Verdict
from trainer.events import RunResult, RunStatus

if TYPE_CHECKING:
    from trainer.data.shards.tokens import TokenData

LOCK_WAIT_SECONDS = 60.0
"""How long a run waits for the worker of a killed dispatcher to let go of its folder."""


@dataclass(frozen=True)
class Measure:
    """Dispatcher to worker: how fast is this configuration here?"""

    config: RunConfig
    seconds: float


@dataclass(frozen=True)
class Answer:
    """Dispatcher to worker: the answer to a validation point, or an unasked command."""

    run_id: int
    verdict: Verdict


class _DispatcherGone(Exception):
    """The pipe broke: nobody is there to report to."""


def worker_main(
    connection: Connection, device: str, threads: int, cache_dir: Path | None, folder: Path
) -> None:
    """Entry point of a worker process; returns when told to stop (None) or left alone.

    It says first on which device it is, or the `ConfigError` that there is no such device.

    `connection` is its end of a duplex pipe, `cache_dir` holds prepared tokens (None: the default),
    `folder` is the dispatcher's working directory, for relative paths.
    """
    os.chdir(folder)
    for name in (signal.SIGINT, signal.SIGTERM):  # they reach us through the dispatcher
        signal.signal(name, signal.SIG_IGN)
    from trainer.hardware.device import configure_threads, detect_device, use_gpu_for_auto

    configure_threads(threads)
    # BrokenPipeError, EOFError, ConnectionResetError: the dispatcher died while we were idle.
    with contextlib.suppress(OSError, EOFError, _DispatcherGone):
        try:
            use_gpu_for_auto(device)
            connection.send(detect_device(device))
        except ConfigError as error:
            connection.send(error)
            return
        opened: dict[str, TokenData] = {}
        while (message := connection.recv()) is not None:
            if isinstance(message, Measure):
                connection.send(_measure(message))
            elif isinstance(message, Job):
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
    connection: Connection, job: Job, opened: dict[str, TokenData], cache_dir: Path | None
) -> None:
    from trainer.data.prepare import open_prepared
    from trainer.hardware.device import release_gpu_memory
    from trainer.loop import train_run

    config = job.config
    try:
        job.run_dir.mkdir(parents=True, exist_ok=True)
        key = f"{config.tokenizer_encoding} {config.data.model_dump_json()}"
        if key not in opened:
            opened.clear()  # one data set at a time: a study has one
            opened[key] = open_prepared(config.data, config.tokenizer_encoding, cache_dir)
        driver = RunDriver(train_run(config, opened[key], job.run_dir), job.waits_at)
        with _locked(job.run_dir):
            result = _drive(connection, job.run_id, driver)
    except _DispatcherGone:
        raise
    except (UserError, OSError) as error:  # a full disk, say: not this configuration's fault
        result = _ended(job, RunStatus.INTERRUPTED, _one_line(error))
    except Exception as error:  # noqa: BLE001 - a defect in one run must not end the search
        traceback.print_exc(file=sys.stderr)
        result = _ended(
            job, RunStatus.FAILED, f"defect: {type(error).__name__}: {_one_line(error)}"
        )
    release_gpu_memory()  # other workers may share the GPU
    connection.send(RunEvent(job.run_id, result))


def _drive(connection: Connection, run_id: int, driver: RunDriver) -> RunResult:
    """Pass events up and verdicts down until the run returns its result."""
    gone = False
    while True:
        event = driver.advance()
        if isinstance(event, RunResult):
            if gone:
                raise _DispatcherGone
            return event
        if gone:
            continue
        try:
            connection.send(RunEvent(run_id, event))
            while not driver.is_commanded and (driver.waiting or connection.poll()):
                answer = connection.recv()
                if answer is None:  # stop for good: keep the work first
                    driver.answer("interrupt")
                elif isinstance(answer, Answer) and answer.run_id == run_id:
                    driver.answer(answer.verdict)
        except (OSError, EOFError):
            driver.answer("interrupt")
            gone = True


def _locked(run_dir: Path) -> contextlib.AbstractContextManager[object]:
    """Hold the run's folder; wait for a worker that outlived its dispatcher."""
    try:
        return file_lock(run_dir / ".lock", seconds=LOCK_WAIT_SECONDS)
    except TimeoutError:
        raise CheckpointError(
            f"{run_dir}: another process still trains in this folder; stop it first"
        ) from None


def _ended(job: Job, status: RunStatus, reason: str) -> RunResult:
    """A result with what the meter says; a folder that cannot be read says nothing."""
    from trainer.flop_meter import read_executed_steps

    executed = 0
    with contextlib.suppress(UserError):
        executed = read_executed_steps(job.run_dir)
    step = min(executed, job.config.steps)
    return RunResult(
        status=status,
        step=step,
        steps_executed=executed,
        tokens=step * job.config.tokens_per_step,
        reason=reason,
    )


def _one_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:500]
