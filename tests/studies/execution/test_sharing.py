"""Several trials on each GPU: where their workers sit, what memory each has."""

from __future__ import annotations

import dataclasses
import signal
from collections import Counter
from collections.abc import Callable
from multiprocessing import Pipe
from pathlib import Path

import pytest
import torch

from budgetsweep.errors import ConfigError
from studies.execution import local_pool
from studies.execution.local_pool import CUDA_PROCESS_BYTES, LocalPool
from studies.execution.messages import Measured, Workers
from studies.execution.worker import worker_main
from studies.planning import TimePlan, dry_run
from tests.support.searches import run_search, settings_for
from trainer.config import RunConfig
from trainer.events import DeviceInfo
from trainer.hardware import device as device_module
from trainer.hardware.device import torch_device, use_gpu_for_auto

GIB = 2**30


class FakeWorker:
    """Claims to sit on a GPU; no process."""

    info: DeviceInfo
    running: list[FakeWorker]

    def __init__(self, device: str, threads: int, cache_dir: object) -> None:
        self.spec = device
        self.device: DeviceInfo | None = None
        self.running.append(self)

    def wait_until_ready(self) -> DeviceInfo:
        self.device = self.info
        return self.info

    def measure(self, config: RunConfig, seconds: float) -> Measured:
        return Measured(1.2e6)

    def stop(self) -> None:
        self.running.remove(self)

    def end(self, timeout: float) -> None:
        """Nothing is left to end."""


def use_fake_gpus(
    monkeypatch: pytest.MonkeyPatch,
    kind: str = "cuda",
    count: int = 1,
    memory_bytes: int = 80 * GIB,
) -> list[FakeWorker]:
    """Have every pool start fake workers; those that run."""
    running: list[FakeWorker] = []
    info = DeviceInfo(kind, "fake", memory_bytes, bf16=True, n_threads=1, count=count)
    monkeypatch.setattr(FakeWorker, "running", running, raising=False)
    monkeypatch.setattr(FakeWorker, "info", info, raising=False)
    monkeypatch.setattr(local_pool, "_Worker", FakeWorker)
    return running


@pytest.fixture(autouse=True)
def text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`settings_for(Path())` writes its text there."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("device", "expected"),
    [("auto", {"cuda:0": 3, "cuda:1": 3}), ("cuda:1", {"cuda:1": 3}), ("cuda", {"cuda": 3})],
)
def test_a_number_of_workers_on_each_gpu_that_the_setting_allows(
    device: str, expected: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    running = use_fake_gpus(monkeypatch, count=2)
    with LocalPool(Workers(per_gpu=3, device=device, threads=1)) as pool:
        pool.start_all()
        assert Counter(worker.spec.replace("auto", "cuda:0") for worker in running) == expected
        assert pool.device().memory_bytes == (80 * GIB - 2 * CUDA_PROCESS_BYTES) // 3
    assert running == []


def test_workers_share_the_gpu_they_are_on_however_many_there_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    use_fake_gpus(monkeypatch, count=4)
    memory = {
        (n, device): LocalPool(Workers(n, device=device)).device().memory_bytes
        for n, device in ((4, "auto"), (5, "auto"), (4, "cuda:1"))
    }
    assert memory[4, "auto"] == 80 * GIB
    assert memory[5, "auto"] == (80 * GIB - CUDA_PROCESS_BYTES) // 2
    assert memory[4, "cuda:1"] == (80 * GIB - 3 * CUDA_PROCESS_BYTES) // 4


def test_without_a_gpu_there_is_nothing_to_share(monkeypatch: pytest.MonkeyPatch) -> None:
    use_fake_gpus(monkeypatch, kind="cpu")
    message = "--trials-per-gpu 4: no GPU with device auto: use --workers 4"
    with pytest.raises(ConfigError, match=message):  # before any text is prepared
        run_search(settings_for(Path(), device="auto", trials_per_gpu=4))
    assert not Path("cache").exists()


def test_a_search_plans_with_the_workers_and_the_memory_it_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All of a search but the training: the number comes before the limits and the plan."""
    use_fake_gpus(monkeypatch, count=2)
    plans: list[TimePlan] = []

    def confirm(plan: TimePlan) -> bool:
        plans.append(plan)
        return False

    settings = settings_for(Path(), device="auto", trials_per_gpu=2)
    assert run_search(settings, confirm=confirm).reason == "not started"
    assert [plan.n_workers for plan in plans] == [4]
    _, planned = dry_run(settings, 50)
    _, alone = dry_run(dataclasses.replace(settings, trials_per_gpu=1), 50)
    assert isinstance(planned, TimePlan)
    assert isinstance(alone, TimePlan)
    assert planned.n_workers == 4
    # Nothing is taken for granted of what sharing gains: each trial runs at half the speed.
    assert planned.trial_seconds / alone.trial_seconds == pytest.approx(2.0)
    assert planned.search_seconds == pytest.approx(alone.search_seconds)

    few = settings_for(Path(), device="auto", trials_per_gpu=64, study="few")
    memory = 63 * CUDA_PROCESS_BYTES + 64 * 10_000  # 10 kB each
    use_fake_gpus(monkeypatch, memory_bytes=memory)
    with pytest.raises(ConfigError, match="no configuration of the space fits this device"):
        run_search(few)
    few = dataclasses.replace(few, trials_per_gpu=1)
    assert run_search(few, confirm=lambda plan: False).reason == "not started"


def test_auto_means_the_gpu_of_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    current: list[torch.device] = [torch.device("cuda", 0)]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: current[-1].index)
    set_device: Callable[[torch.device], None] = current.append
    monkeypatch.setattr(torch.cuda, "set_device", set_device)
    assert torch_device("auto") == torch.device("cuda:0")
    use_gpu_for_auto("cuda:1")
    assert torch_device("auto") == torch.device("cuda:1")


def test_a_worker_settles_on_its_gpu_before_it_says_what_it_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    info = DeviceInfo("cuda", "fake", GIB, bf16=True, n_threads=1, count=2)
    done: list[str] = []
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)
    monkeypatch.setattr(device_module, "use_gpu_for_auto", done.append)
    monkeypatch.setattr(
        device_module, "detect_device", lambda spec: info if done == [spec] else None
    )
    ours, theirs = Pipe()
    ours.send(None)
    worker_main(theirs, "cuda:1", 1, None, Path.cwd())
    assert ours.recv() == info
