"""Runs on this machine: warm worker processes, one run at a time each."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import multiprocessing
import os
import time
from multiprocessing import connection as mpc
from multiprocessing.process import BaseProcess
from pathlib import Path

from budgetsweep.errors import ConfigError, StudyError
from studies.execution.base import Executor
from studies.execution.messages import Job, Measured, RunEvent, RunLost, Workers
from studies.execution.worker import Answer, Measure, worker_main
from trainer.config import RunConfig
from trainer.data.cache import default_cache_dir
from trainer.driver import Verdict
from trainer.events import DeviceInfo, RunResult
from trainer.flop_meter import read_executed_steps
from trainer.hardware.environment import prepare_environment

START_SECONDS = 180.0
"""How long a worker may take to import torch and find its device (a cold disk is slow)."""
CUDA_PROCESS_BYTES = 512 << 20
"""GPU memory that a further process takes before its first tensor (context, kernels;
*assumption*). The first worker's own is taken when it reports the free memory."""


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
        self.job: Job | None = None
        self.device: DeviceInfo | None = None
        self.process.start()
        theirs.close()

    def wait_until_ready(self) -> DeviceInfo:
        if self.device is None:
            answer = self._receive(START_SECONDS)
            if isinstance(answer, ConfigError):
                raise answer
            if not isinstance(answer, DeviceInfo):
                self.process.join(5.0)
                raise StudyError(
                    f"a worker process did not start (exit code {self.process.exitcode}); "
                    "its own message stands above"
                )
            self.device = answer
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


class LocalPool(Executor):
    """Warm worker processes of this machine, one run at a time each."""

    def __init__(self, workers: Workers) -> None:
        """Start the first worker, which finds the device while the dispatcher prepares."""
        self._asked = workers
        # Decided here: workers have the environment of the fork server's first day.
        self._cache_dir = (workers.cache_dir or default_cache_dir()).absolute()
        self._has_measured = False
        self._workers: list[_Worker] = []
        self._workers.append(self._spawn(0))

    @property
    def n_workers(self) -> int:
        """Workers that `start_all` brings up; waits for the first one where it decides that."""
        if self._asked.per_gpu is None:
            return self._asked.count
        return self._asked.per_gpu * self._n_devices()

    def device(self) -> DeviceInfo:
        """The device as one worker may use it: its memory is shared among the workers on it.

        Raises:
            ConfigError: there is no such device, or no GPU where runs per GPU are asked for.
            StudyError: the first process did not start.
        """
        info, count = self._first_device(), self._n_sharing()
        contexts = CUDA_PROCESS_BYTES * (count - 1) if info.kind == "cuda" else 0
        return dataclasses.replace(info, memory_bytes=max(0, info.memory_bytes - contexts) // count)

    def _first_device(self) -> DeviceInfo:
        info = self._workers[0].wait_until_ready()
        if self._asked.per_gpu is not None and info.kind != "cuda":
            raise no_gpu_to_share(self._asked.per_gpu, self._asked.device)
        return info

    def _n_devices(self) -> int:
        """Devices that the setting allows: all GPUs, or the one thing that it names."""
        info = self._first_device()
        return info.count if info.kind == "cuda" and self._asked.device == "auto" else 1

    def _n_sharing(self) -> int:
        """Workers on the first device, where the most are."""
        return -(-self.n_workers // self._n_devices())

    def measure(self, config: RunConfig, seconds: float) -> Measured:
        """Training speed of a worker while all workers on its GPU train alike, at the least.

        One is measured alone, and what sharing a GPU gains is not counted. A CPU's cores are
        divided among its workers already.
        """
        self._has_measured = True
        kind = self._first_device().kind
        alone = self._workers[0].measure(config, seconds) or Measured(None, "the worker died")
        if alone.tokens_per_second is None or kind != "cuda":
            return alone
        return Measured(alone.tokens_per_second / self._n_sharing())

    def start_all(self) -> None:
        """Bring up all workers; on a CPU none of them has measured.

        There a worker that has is replaced: its heap, in pieces behind large batches, would add
        70 MB to the first run of a small model (420 to 498 MB, n = 2). On a GPU that would cost
        a CUDA context and gain nothing.
        """
        if self._has_measured and self._first_device().kind == "cpu":
            self._end(self._workers[:1])
            self._workers[0] = self._spawn(0)
            self._has_measured = False
        self._first_device()
        while len(self._workers) < self.n_workers:
            self._workers.append(self._spawn(len(self._workers)))
        for worker in self._workers:
            worker.wait_until_ready()

    def n_idle(self) -> int:
        """Workers that can take a run."""
        return sum(worker.job is None for worker in self._workers)

    def running(self) -> set[int]:
        """Ids of the runs in hand."""
        return {worker.job.run_id for worker in self._workers if worker.job is not None}

    def submit(self, job: Job) -> None:
        """Hand a run to an idle worker; there must be one."""
        worker = next(worker for worker in self._workers if worker.job is None)
        try:
            worker.connection.send(job)
        except OSError:  # it died while idle: take a new one
            worker = self._replace(worker)
            worker.connection.send(job)
        worker.job = job

    def answer(self, run_id: int, verdict: Verdict) -> None:
        """Answer a validation point, or tell a run to stop. A finished run does not hear it."""
        for worker in self._workers:
            if worker.job is not None and worker.job.run_id == run_id:
                with contextlib.suppress(OSError):  # its death shows in poll()
                    worker.connection.send(Answer(run_id, verdict))

    def poll(self, timeout: float) -> list[RunEvent | RunLost]:
        """What happened in at most `timeout` seconds; dead workers are replaced."""
        busy = {worker.connection: worker for worker in self._workers if worker.job is not None}
        happened: list[RunEvent | RunLost] = []
        for ready in mpc.wait(list(busy), timeout):
            worker = busy[ready]  # type: ignore[index]
            try:
                while worker.job is not None and worker.connection.poll():
                    message = worker.connection.recv()
                    if isinstance(message, RunEvent):
                        happened.append(message)
                        if isinstance(message.event, RunResult):
                            worker.job = None
            except (OSError, EOFError):
                worker.process.join(5.0)
                happened.append(self._lost(worker, _cause(worker.process.exitcode)))
                self._replace(worker)
        return happened

    def _lost(self, worker: _Worker, reason: str) -> RunLost:
        assert worker.job is not None
        return RunLost(worker.job.run_id, self.steps_executed(worker.job.run_dir), reason)

    def steps_executed(self, run_dir: Path) -> int:
        """Optimiser steps that the meter in a run's folder shows."""
        return read_executed_steps(run_dir)

    def kill(self) -> list[RunLost]:
        """End all workers at once, unsaved work and all; the runs that were in hand."""
        for worker in self._workers:
            worker.process.kill()
        busy = [worker for worker in self._workers if worker.job is not None]
        self.close(1.0)
        return [self._lost(worker, "stopped at once") for worker in busy]

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

    def _replace(self, worker: _Worker) -> _Worker:
        """A new worker in the place of a dead one, ready."""
        index = self._workers.index(worker)
        worker.end(0.0)
        self._workers[index] = self._spawn(index)
        self._workers[index].wait_until_ready()
        return self._workers[index]

    def _spawn(self, place: int) -> _Worker:
        """Start the worker of a place."""
        count = self._asked.count if place == 0 else self.n_workers
        threads = self._asked.threads or max(1, usable_cores() // count)
        return _Worker(self._device_of(place), threads, self._cache_dir)

    def _device_of(self, place: int) -> str:
        """The device of a place: on several GPUs they take turns, once their number is known."""
        info = self._workers[0].device if self._workers else None
        if self._asked.device == "auto" and info is not None and info.kind == "cuda":
            return f"cuda:{place % info.count}"
        return self._asked.device


def no_gpu_to_share(wanted: int, device: str) -> ConfigError:
    """The refusal of a number of trials per GPU where there is none."""
    return ConfigError(
        f"--trials-per-gpu {wanted}: no GPU with device {device}: use --workers {wanted}"
    )


def _cause(exit_code: int | None) -> str:
    """Why a worker died, as far as its exit code tells."""
    if exit_code == -9:
        return "the worker process was killed (SIGKILL; often the system is out of memory)"
    if exit_code is not None and exit_code < 0:
        return f"the worker process died of signal {-exit_code}"
    return f"the worker process ended with exit code {exit_code}"


def usable_cores() -> int:
    """Cores that this process may use (affinity and container limits counted)."""
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return os.cpu_count() or 1
