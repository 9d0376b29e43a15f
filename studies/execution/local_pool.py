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
from statistics import fmean

from budgetsweep.errors import ConfigError, StudyError
from studies.execution.worker import (
    Go,
    Measure,
    Measured,
    NoDevice,
    Ready,
    RunEvent,
    StartRun,
    Verdict,
    Warm,
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

    def send(self, message: object) -> None:
        """Send to a worker that may be dead: then the answer is missing."""
        with contextlib.suppress(OSError):
            self.connection.send(message)

    def answer(self, seconds: float) -> Measured | Warm | None:
        """What comes of a `Measure` of so many seconds; None: it is dead or hangs."""
        answer = self._receive(60.0 + 30.0 * seconds)
        return answer if isinstance(answer, Measured | Warm) else None

    def _receive(self, timeout: float) -> object:
        try:
            return self.connection.recv() if self.connection.poll(timeout) else None
        except (OSError, EOFError):
            return None

    def stop(self) -> None:
        self.send(None)

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
        # Settled here: workers have the environment of the fork server's first day.
        self._cache_dir = (cache_dir or default_cache_dir()).absolute()
        self._device = device
        self._workers: list[_Worker] = []
        self._beside: list[_Worker] = []
        """Workers on the first one's device that were started to measure beside it."""
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
        return self.device_shared_by(self._n_sharing())

    def device_shared_by(self, count: int) -> DeviceInfo:
        """The first device as each of `count` workers on it may use it."""
        info = self.device()
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
        worker.send(Measure(config, seconds))
        answer = worker.answer(seconds)
        return answer if isinstance(answer, Measured) else Measured(None, "the worker died")

    def measure_share(self, config: RunConfig, seconds: float) -> Measured:
        """Training speed that a worker has while all workers on its GPU train alike.

        A CPU's cores are divided among its workers: there one is measured alone.
        """
        sharing = self._n_sharing() if self.device().kind == "cuda" else 1
        if sharing == 1:
            return self.measure(config, seconds)
        speeds = self.measure_together(config, seconds, sharing)
        return Measured(None, speeds) if isinstance(speeds, str) else Measured(fmean(speeds))

    def measure_together(self, config: RunConfig, seconds: float, count: int) -> list[float] | str:
        """Training speed of one configuration in `count` idle workers on the first device at once.

        Each warms up in its own time, then all measure at the same moment. A worker that is missing
        is started; it stays for `start_all`.

        Returns:
            Tokens a second of each worker, or in one line why one of them could not measure.
        """
        self._has_measured = True
        self.device()
        while len(self._beside) < count - 1:
            self._beside.append(self._spawn(0))
        workers = [self._workers[0], *self._beside[: count - 1]]
        missing: dict[_Worker, str] = {}
        for worker in workers:
            try:
                worker.wait_until_ready()
            except (StudyError, ConfigError) as error:
                missing[worker] = str(error)
        if missing:
            self._drop(list(missing))
            return next(iter(missing.values()))
        for worker in workers:
            worker.send(Measure(config, seconds, together=True))
        answers = [worker.answer(seconds) for worker in workers]
        warm = [w for w, answer in zip(workers, answers, strict=True) if isinstance(answer, Warm)]
        for worker in warm:
            worker.send(Go())
        answers = [
            worker.answer(seconds) if worker in warm else answer
            for worker, answer in zip(workers, answers, strict=True)
        ]
        self._drop([w for w, answer in zip(workers, answers, strict=True) if answer is None])
        speeds: list[float] = []
        for answer in answers:
            if not isinstance(answer, Measured):
                return "a worker died"
            if answer.tokens_per_second is None:
                return answer.reason or "unknown"
            speeds.append(answer.tokens_per_second)
        return speeds

    def _drop(self, workers: list[_Worker]) -> None:
        """End workers that died or hang while measuring; the first one is replaced."""
        for worker in workers:
            worker.process.kill()
            worker.end(5.0)
        if self._workers[0] in workers:
            self._workers[0] = self._spawn(0)
        self._beside = [worker for worker in self._beside if worker not in workers]

    def start_all(self) -> None:
        """Bring up all workers; on a CPU none of them has measured.

        There a worker that has is replaced: its heap, in pieces behind large batches, would add
        70 MB to the first run of a small model (420 to 498 MB, n = 2). On a GPU that would cost
        a CUDA context and gain nothing.
        """
        if self._has_measured and self.device().kind == "cpu":
            self._end([self._workers[0], *self._beside])
            self._workers[0] = self._spawn(0)
            self._beside.clear()
            self._has_measured = False
        self.device()
        while len(self._workers) < self._n_workers:
            place = len(self._workers)
            if self._beside and self._device_of(place) == self._device_of(0):
                self._workers.append(self._beside.pop(0))
            else:
                self._workers.append(self._spawn(place))
        self._end(self._beside)  # more were tried than are worth it
        self._beside.clear()
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
        self._end([*self._workers, *self._beside], grace_seconds)
        self._workers.clear()
        self._beside.clear()

    def _end(self, workers: list[_Worker], grace_seconds: float = 5.0) -> None:
        for worker in workers:
            worker.stop()
        deadline = time.monotonic() + grace_seconds
        for worker in workers:
            worker.end(max(0.1, deadline - time.monotonic()))

    def kill(self) -> None:
        """End all workers at once, unsaved work and all."""
        for worker in [*self._workers, *self._beside]:
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
