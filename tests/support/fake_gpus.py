"""Workers that claim to sit on GPUs, for tests of what the pool does with them: no process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from budgetsweep.errors import StudyError
from studies.execution import local_pool
from studies.execution.worker import Go, Measure, Measured, Warm
from trainer.events import DeviceInfo

GIB = 2**30


class FakeGpus:
    """Devices of one kind, and every worker that was started on them."""

    def __init__(self, totals: Callable[[int], float | None], **info: Any) -> None:
        values = {
            "kind": "cuda", "name": "fake", "memory_bytes": 80 * GIB, "bf16": True, "n_threads": 1,
            "count": 1,
        }  # fmt: skip
        self.info = DeviceInfo(**{**values, **info})
        self.totals = totals
        """Tokens a second of so many workers together; None: out of memory."""
        self.most_processes = 1000
        self.started: list[FakeWorker] = []
        self.measuring: list[FakeWorker] = []

    @property
    def running(self) -> list[FakeWorker]:
        return [worker for worker in self.started if not worker.ended]


class FakeWorker:
    gpus: FakeGpus

    def __init__(self, device: str, threads: int, cache_dir: object) -> None:
        self.spec, self.threads = device, threads
        self.run_id: int | None = None
        self.device: DeviceInfo | None = None
        self.ended = self.is_dead = self.is_warm = False
        self.process = self
        self.messages: list[Any] = []
        self.gpus.started.append(self)

    def wait_until_ready(self) -> DeviceInfo:
        if self.device is None and self.gpus.started.index(self) >= self.gpus.most_processes:
            raise StudyError("a worker process did not start (exit code 1)")
        self.device = self.gpus.info
        return self.device

    def send(self, message: object) -> None:
        if isinstance(message, Measure):
            if any(worker.messages == [] for worker in self.gpus.measuring):
                self.gpus.measuring = []  # those have answered: another measurement begins
            self.gpus.measuring.append(self)
            self.is_warm = False
        if isinstance(message, Go):  # the same moment for all
            assert all(worker.is_warm or worker.is_dead for worker in self.gpus.measuring)
        self.messages.append(message)

    def answer(self, seconds: float) -> Measured | Warm | None:
        if self.is_dead:
            return None
        message = self.messages[-1]
        if isinstance(message, Measure) and message.together:
            self.is_warm = True
            return Warm()
        assert isinstance(message, Measure | Go)
        self.messages = []
        count = len(self.gpus.measuring)
        total = self.gpus.totals(count)
        return Measured(None, "CUDA out of memory") if total is None else Measured(total / count)

    def kill(self) -> None:
        self.ended = True

    stop = kill

    def end(self, timeout: float) -> None:
        self.ended = True


def use_fake_gpus(
    monkeypatch: pytest.MonkeyPatch, totals: Callable[[int], float | None], **info: Any
) -> FakeGpus:
    """Have every pool start fake workers; keywords change what they say of their device."""
    gpus = FakeGpus(totals, **info)
    monkeypatch.setattr(FakeWorker, "gpus", gpus, raising=False)
    monkeypatch.setattr(local_pool, "_Worker", FakeWorker)
    return gpus
