"""Where runs are computed: warm worker processes, one run at a time each.

The pool starts processes, hands out runs, passes events back and notices death. It decides
nothing: what to run, what to store and what a death means is the dispatcher's business.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import multiprocessing
import os
import time
from dataclasses import dataclass
from multiprocessing import connection as mpc
from multiprocessing.process import BaseProcess
from pathlib import Path

from budgetsweep.errors import ConfigError, StudyError
from studies.execution.worker import (
    Measure,
    Measured,
    NoDevice,
    Ready,
    RunEvent,
    StartRun,
    Verdict,
    worker_main,
)
from trainer.config import RunConfig
from trainer.data.cache import default_cache_dir
from trainer.events import Command, DeviceInfo, RunResult
from trainer.hardware.environment import prepare_environment

START_SECONDS = 180.0
"""How long a worker may take to import torch and find its device (a cold disk is slow)."""
CUDA_PROCESS_BYTES = 512 << 20
"""GPU memory that a further process takes before its first tensor (context, kernels;
*assumption*). The first worker's own is taken when it reports the free memory."""


@dataclass(frozen=True)
class WorkerDied:
    """A worker process ended while it had a run in hand."""

    run_id: int
    exit_code: int | None

    def describe(self) -> str:
        """The cause, as far as the exit code tells it."""
        if self.exit_code == -9:
            return "the worker process was killed (SIGKILL; often the system is out of memory)"
        if self.exit_code is not None and self.exit_code < 0:
            return f"the worker process died of signal {-self.exit_code}"
        return f"the worker process ended with exit code {self.exit_code}"


@functools.cache
def _context() -> multiprocessing.context.BaseContext:
    """How workers are started: forked from a server that has imported torch and nothing else.

    A fork of the dispatcher itself would copy its threads and database connections; a fresh
    interpreter would import torch again for each worker. The server never touches a GPU, so CUDA
    begins in the worker. Where there is no fork server (Windows), workers are fresh interpreters.
    """
    prepare_environment()
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["studies.execution.fork_server", "trainer.loop", "trainer.data.prepare"]
    )
    return context


class _Worker:
    """One process, its pipe and the run it has in hand."""

    def __init__(self, device: str, threads: int, cache_dir: Path | None) -> None:
        context = _context()
        self.connection, theirs = context.Pipe()
        self.process: BaseProcess = context.Process(  # type: ignore[attr-defined]
            target=worker_main, args=(theirs, device, threads, cache_dir, Path.cwd()), daemon=True
        )
        self.run_id: int | None = None
        self.device: DeviceInfo | None = None
        self.process.start()
        theirs.close()

    def wait_until_ready(self) -> DeviceInfo:
        if self.device is None:
            answer = self._receive(START_SECONDS)
            if isinstance(answer, NoDevice):
                raise ConfigError(answer.reason)
            if not isinstance(answer, Ready):
                self.process.join(5.0)
                raise StudyError(
                    f"a worker process did not start (exit code {self.process.exitcode}); "
                    "its own message stands above"
                )
            self.device = answer.device
        return self.device

    def measure(self, config: RunConfig, seconds: float) -> Measured | None:
        """Training speed of a configuration; None: the worker is dead or hangs."""
        with contextlib.suppress(OSError):  # it is dead: then the answer is missing
            self.connection.send(Measure(config, seconds))
        answer = self._receive(60.0 + 30.0 * seconds)
        return answer if isinstance(answer, Measured) else None

    def _receive(self, timeout: float) -> object:
        try:
            return self.connection.recv() if self.connection.poll(timeout) else None
        except (OSError, EOFError):
            return None

    def stop(self) -> None:
        with contextlib.suppress(OSError):  # it may be dead
            self.connection.send(None)

    def end(self, timeout: float) -> None:
        self.process.join(timeout)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.connection.close()


class WorkerPool:
    """A fixed number of workers; a context manager that leaves no process behind."""

    def __init__(
        self,
        n_workers: int,
        *,
        device: str = "auto",
        threads: int | None = None,
        cache_dir: Path | None = None,
    ) -> None:
        self._n_workers = n_workers
        self._threads = threads
        # FinishedSteps here: workers have the environment of the fork server's first day.
        self._cache_dir = (cache_dir or default_cache_dir()).absolute()
        self._device = device
        self._workers: list[_Worker] = []
        self._has_measured = False
        # The first worker finds the device while the dispatcher prepares; the others follow it.
        self._workers.append(self._spawn(0))

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def device(self) -> DeviceInfo:
        """The device of the first worker; waits until it is up.

        Raises:
            ConfigError: there is no such device.
            StudyError: the process did not start.
        """
        return self._workers[0].wait_until_ready()

    @property
    def n_workers(self) -> int:
        """Workers that `start_all` brings up."""
        return self._n_workers

    def share_gpus(self, workers_per_gpu: int) -> None:
        """Have so many workers on each GPU that the device setting allows; before `start_all`.

        Threads of those that run already stay as they are: on a GPU they hardly compute.

        Raises:
            StudyError: the first process did not start.
        """
        self._n_workers = workers_per_gpu * self._n_devices()

    def device_per_worker(self) -> DeviceInfo:
        """The device as one worker may use it: its memory is shared among the workers on it."""
        info, count = self.device(), self._n_sharing()
        contexts = CUDA_PROCESS_BYTES * (count - 1) if info.kind == "cuda" else 0
        return dataclasses.replace(info, memory_bytes=max(0, info.memory_bytes - contexts) // count)

    def _n_devices(self) -> int:
        """Devices that the setting allows: all GPUs, or the one thing that it names."""
        info = self.device()
        return info.count if info.kind == "cuda" and self._device == "auto" else 1

    def _n_sharing(self) -> int:
        """Workers on the first device, where the most are."""
        return -(-self._n_workers // self._n_devices())

    def measure(self, config: RunConfig, seconds: float) -> Measured:
        """Training speed of one configuration on the first worker, which must be idle."""
        self._has_measured = True
        worker = self._workers[0]
        worker.wait_until_ready()
        return worker.measure(config, seconds) or Measured(None, "the worker died")

    def measure_share(self, config: RunConfig, seconds: float) -> Measured:
        """Training speed of a worker while all workers on its GPU train alike, at the least.

        One is measured alone, and what sharing a GPU gains is not counted. A CPU's cores are
        divided among its workers already.
        """
        alone = self.measure(config, seconds)
        if alone.tokens_per_second is None or self.device().kind != "cuda":
            return alone
        return Measured(alone.tokens_per_second / self._n_sharing())

    def start_all(self) -> None:
        """Bring up all workers; on a CPU none of them has measured.

        There a worker that has is replaced: its heap, in pieces behind large batches, would add
        70 MB to the first run of a small model (420 to 498 MB, n = 2). On a GPU that would cost
        a CUDA context and gain nothing.
        """
        if self._has_measured and self.device().kind == "cpu":
            self._end(self._workers[:1])
            self._workers[0] = self._spawn(0)
            self._has_measured = False
        self.device()
        while len(self._workers) < self._n_workers:
            self._workers.append(self._spawn(len(self._workers)))
        for worker in self._workers:
            worker.wait_until_ready()

    def n_idle(self) -> int:
        """Workers that can take a run."""
        return sum(worker.run_id is None for worker in self._workers)

    def running(self) -> set[int]:
        """Runs in hand."""
        return {worker.run_id for worker in self._workers if worker.run_id is not None}

    def submit(
        self, run_id: int, config: RunConfig, run_dir: Path, *, wait_for_verdict: bool
    ) -> None:
        """Hand a run to an idle worker; there must be one."""
        worker = next(worker for worker in self._workers if worker.run_id is None)
        worker.run_id = run_id
        message = StartRun(run_id, config, str(run_dir), wait_for_verdict)
        try:
            worker.connection.send(message)
        except OSError:  # it died while idle: take a new one
            index = self._workers.index(worker)
            worker.end(0.0)
            worker = self._workers[index] = self._spawn(index)
            worker.wait_until_ready()
            worker.run_id = run_id
            worker.connection.send(message)

    def command(self, run_id: int, command: Command) -> None:
        """Answer a validation point, or tell a run to stop. A finished run does not hear it."""
        self._tell(run_id, Verdict(run_id, command))

    def go_on(self, run_id: int) -> None:
        """Answer a validation point: continue."""
        self._tell(run_id, Verdict(run_id, "continue"))

    def _tell(self, run_id: int, verdict: Verdict) -> None:
        for worker in self._workers:
            if worker.run_id == run_id:
                try:
                    worker.connection.send(verdict)
                except OSError:  # its death shows in poll()
                    return

    def interrupt_all(self) -> None:
        """Tell every run to write a checkpoint and stop."""
        for run_id in self.running():
            self.command(run_id, "interrupt")

    def poll(self, timeout: float) -> list[RunEvent | WorkerDied]:
        """What happened in at most `timeout` seconds; dead workers are replaced."""
        busy = {worker.connection: worker for worker in self._workers if worker.run_id is not None}
        happened: list[RunEvent | WorkerDied] = []
        for ready in mpc.wait(list(busy), timeout):
            worker = busy[ready]  # type: ignore[index]
            try:
                while worker.run_id is not None and worker.connection.poll():
                    message = worker.connection.recv()
                    if isinstance(message, RunEvent):
                        happened.append(message)
                        if isinstance(message.event, RunResult):
                            worker.run_id = None
            except (OSError, EOFError):
                worker.process.join(5.0)
                assert worker.run_id is not None
                happened.append(WorkerDied(worker.run_id, worker.process.exitcode))
                worker.end(0.0)
                index = self._workers.index(worker)
                self._workers[index] = self._spawn(index)
                self._workers[index].wait_until_ready()
        return happened

    def close(self, grace_seconds: float = 30.0) -> None:
        """Stop all workers; runs in hand write a checkpoint if they can in time."""
        self._end(self._workers, grace_seconds)
        self._workers.clear()

    def _end(self, workers: list[_Worker], grace_seconds: float = 5.0) -> None:
        for worker in workers:
            worker.stop()
        deadline = time.monotonic() + grace_seconds
        for worker in workers:
            worker.end(max(0.1, deadline - time.monotonic()))

    def kill(self) -> None:
        """End all workers at once, unsaved work and all."""
        for worker in self._workers:
            worker.process.kill()
        self.close(1.0)

    def _spawn(self, place: int) -> _Worker:
        """Start the worker of a place."""
        threads = self._threads or max(1, usable_cores() // self._n_workers)
        return _Worker(self._device_of(place), threads, self._cache_dir)

    def _device_of(self, place: int) -> str:
        """The device of a place: on several GPUs they take turns, once their number is known."""
        info = self._workers[0].device if self._workers else None
        if self._device == "auto" and info is not None and info.kind == "cuda":
            return f"cuda:{place % info.count}"
        return self._device


def usable_cores() -> int:
    """Cores that this process may use (affinity and container limits counted)."""
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return os.cpu_count() or 1
