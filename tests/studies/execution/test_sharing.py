"""Several trials on each GPU: how many pay, where their workers sit, what memory each has."""

from __future__ import annotations

import dataclasses
import itertools
import signal
import time
from collections import Counter
from collections.abc import Callable
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from budgetsweep.constraint import Admitted
from budgetsweep.errors import ConfigError
from studies.dry_run import dry_run
from studies.execution.local_pool import CUDA_PROCESS_BYTES, WorkerPool
from studies.execution.worker import Ready, worker_main
from studies.planning import Sample, TimePlan
from studies.sharing import Choice, choose, share_gpus
from tests.support.fake_gpus import GIB, FakeGpus, use_fake_gpus
from tests.support.searches import Recorder, run_search, settings_for
from tests.support.tiny_runs import tiny_config
from trainer import throughput
from trainer.config import RunConfig
from trainer.hardware import device as device_module
from trainer.hardware.device import settle_device, torch_device
from trainer.throughput import measure_tokens_per_second

SPEEDS = {1: 1.2e6, 2: 1.9e6, 4: 2.0e6, 8: 9e6}
"""Four bring a twentieth more than two; eight must never be asked."""


@pytest.mark.parametrize(
    ("script", "count", "asked"),
    [
        ({1: [100, 10], 2: [190, 19], 4: [200, 20], 8: [900, 90]}, 2, [1, 2, 4]),
        ({1: [100], 2: [200], 4: [400], 8: [800]}, 8, [1, 2, 4, 8]),
        ({1: [100], 2: [111], 4: [123.4], 8: [130]}, 4, [1, 2, 4, 8]),
        ({1: [100], 2: [109]}, 1, [1, 2]),
        ({1: [100], 2: [60]}, 1, [1, 2]),
        ({1: [100, 100], 2: [200, 60]}, 1, [1, 2]),  # √(2 · 0.6) = 1.095
        ({1: [100, 100], 2: [200, 61], 4: [1, 1]}, 2, [1, 2, 4]),  # √(2 · 0.61) = 1.105
        ({1: [100], 2: [200], 4: "out of memory"}, 2, [1, 2, 4]),
        ({1: "out of memory"}, 1, [1]),
    ],
)
def test_more_workers_are_taken_while_they_bring_a_tenth_more(
    script: dict[int, list[float] | str], count: int, asked: list[int]
) -> None:
    calls: list[int] = []

    def measure(n: int) -> list[float] | str:
        calls.append(n)
        return script[n]

    assert choose(measure).count == count
    assert calls == asked


def test_what_was_measured_and_chosen_is_one_line() -> None:
    told = Choice(2, {1: 1234567.0, 2: 1.9e6, 4: 2e6}, None).line()
    assert told == (
        "trials per GPU: 1 → 1,230,000 tokens/s, 2 → 1,900,000, 4 → 2,000,000: 2 are used"
    )
    assert Choice(1, {1: 456.7}, (2, "CUDA out of memory")).line() == (
        "trials per GPU: 1 → 457 tokens/s, 2 not measured (CUDA out of memory): 1 is used"
    )
    assert Choice(1, {}, (1, "a worker died")).line() == (
        "trials per GPU: 1 not measured (a worker died): 1 is used"
    )


def sample_of(config: RunConfig, memory_bytes: int = GIB) -> Sample:
    return Sample([Admitted(config, 10**9, memory_bytes, None)], [])


def shared(
    wanted: Any, device: str = "auto", memory_bytes: int = GIB, threads: int | None = 1
) -> tuple[WorkerPool, str | None]:
    """A pool whose GPUs are shared as wanted, all workers started."""
    settings = dataclasses.replace(
        settings_for(Path(), trials_per_gpu=wanted, device=device), workers=None
    )
    pool = WorkerPool(1, device=device, threads=threads)
    told = share_gpus(
        settings, pool, lambda: sample_of(tiny_config(), memory_bytes), seconds_each=0.1
    )
    return pool, told


def places(gpus: FakeGpus) -> Counter[str]:
    return Counter(worker.spec.replace("auto", "cuda:0") for worker in gpus.running)


@pytest.fixture(autouse=True)
def text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`settings_for(Path())` writes its text there."""
    monkeypatch.chdir(tmp_path)


def test_the_measured_number_sits_on_every_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus = use_fake_gpus(monkeypatch, SPEEDS.__getitem__, count=2)
    pool, told = shared("auto")
    assert told is not None
    assert told.endswith("1 → 1,200,000 tokens/s, 2 → 1,900,000, 4 → 2,000,000: 2 are used")
    measured = list(gpus.started)
    assert len(measured) == 4
    assert places(gpus) == {"cuda:0": 4}  # all on the first GPU
    pool.start_all()
    assert pool.n_workers == pool.n_idle() == 4
    assert places(gpus) == {"cuda:0": 2, "cuda:1": 2}
    kept = [worker for worker in measured if not worker.ended]
    assert kept == measured[:2]  # those that are warm stay, what is too many goes
    pool.close()
    assert gpus.running == []


@pytest.mark.parametrize(
    ("device", "expected"),
    [("auto", {"cuda:0": 3, "cuda:1": 3}), ("cuda:1", {"cuda:1": 3}), ("cuda", {"cuda": 3})],
)
def test_a_number_of_workers_on_each_gpu_that_the_setting_allows(
    device: str, expected: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus = use_fake_gpus(monkeypatch, SPEEDS.__getitem__, count=2)
    pool, told = shared(3, device)
    assert told is None
    pool.start_all()
    assert places(gpus) == expected
    assert pool.device_per_worker().memory_bytes == (80 * GIB - 2 * CUDA_PROCESS_BYTES) // 3


def test_workers_share_the_gpu_they_are_on_however_many_there_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    use_fake_gpus(monkeypatch, SPEEDS.__getitem__, count=4)
    memory = {
        (n, device): WorkerPool(n, device=device).device_per_worker().memory_bytes
        for n, device in ((4, "auto"), (5, "auto"), (4, "cuda:1"))
    }
    assert memory[4, "auto"] == 80 * GIB
    assert memory[5, "auto"] == (80 * GIB - CUDA_PROCESS_BYTES) // 2
    assert memory[4, "cuda:1"] == (80 * GIB - 3 * CUDA_PROCESS_BYTES) // 4


def test_no_number_is_tried_whose_share_is_too_small(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus = use_fake_gpus(monkeypatch, lambda count: 1e6 * count, memory_bytes=8 * GIB)
    pool, told = shared("auto", memory_bytes=3 * GIB)
    assert pool.n_workers == 2
    assert len(gpus.started) == 2
    assert told is not None
    assert "4 not measured (a sampled configuration needs 3 GiB, a share has 1.62 GiB)" in told


def test_a_worker_that_runs_out_of_memory_ends_the_measuring(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gpus = use_fake_gpus(monkeypatch, lambda count: 1e6 * count if count < 4 else None)
    pool, told = shared("auto")
    assert told is not None
    assert told.endswith("4 not measured (CUDA out of memory): 2 are used")
    pool.start_all()
    assert len(gpus.running) == 2


def test_a_worker_that_does_not_start_ends_the_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus = use_fake_gpus(monkeypatch, lambda count: 1e6 * count)
    gpus.most_processes = 2
    pool, told = shared("auto")
    assert told is not None
    assert "4 not measured (a worker process did not start" in told
    assert len(gpus.running) == 2
    pool.start_all()
    assert len(gpus.running) == pool.n_workers == 2


def test_a_worker_that_dies_while_it_measures_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus = use_fake_gpus(monkeypatch, lambda count: 1e6 * count)
    with WorkerPool(1) as pool:
        pool.share_gpus(2)
        for dead in (0, 1):
            assert pool.measure_together(tiny_config(), 0.1, 2) == [1e6, 1e6]
            worker = gpus.running[dead]
            worker.is_dead = True
            assert pool.measure_together(tiny_config(), 0.1, 2) == "a worker died"
            assert worker.ended
        pool.start_all()
        assert len(gpus.running) == 2
        assert not any(worker.is_dead for worker in gpus.running)
    assert gpus.running == []


def test_without_a_gpu_there_is_nothing_to_share(monkeypatch: pytest.MonkeyPatch) -> None:
    use_fake_gpus(monkeypatch, SPEEDS.__getitem__, kind="cpu")
    pool, told = shared("auto")
    assert told == "trials per GPU: there is no GPU to share, 1 worker is used"
    assert pool.n_workers == 1
    message = "--trials-per-gpu 4: no GPU with device auto: use --workers 4"
    with pytest.raises(ConfigError, match=message):
        shared(4)
    with pytest.raises(ConfigError, match=message):  # before any text is prepared
        run_search(settings_for(Path(), device="auto", trials_per_gpu=4))
    assert not Path("cache").exists()


def test_a_search_plans_with_the_workers_and_the_memory_it_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All of a search but the training: the number comes before the limits and the plan."""
    use_fake_gpus(monkeypatch, SPEEDS.__getitem__, count=2)
    plans: list[TimePlan] = []

    def confirm(plan: TimePlan) -> bool:
        plans.append(plan)
        return False

    recorder = Recorder()
    settings = settings_for(Path(), device="auto", trials_per_gpu="auto")
    outcome = run_search(settings, observer=recorder, confirm=confirm)
    assert outcome.reason == "not started"
    assert [plan.n_workers for plan in plans] == [4]
    assert [m for m in recorder.messages if m.endswith("4 → 2,000,000: 2 are used")]
    planned = dry_run(settings, 50)
    assert planned.sharing in recorder.messages
    assert planned.plan is not None
    assert planned.plan.n_workers == 4
    # Two share the GPU: each trial runs at half of what both do together.
    alone = dry_run(dataclasses.replace(settings, trials_per_gpu=1), 50).plan
    assert alone is not None
    assert planned.plan.trial_seconds / alone.trial_seconds == pytest.approx(1.2 / (1.9 / 2))

    few = settings_for(Path(), device="auto", trials_per_gpu=64, study="few")
    memory = 63 * CUDA_PROCESS_BYTES + 64 * 10_000  # 10 kB each
    use_fake_gpus(monkeypatch, lambda count: 1e6, memory_bytes=memory)
    with pytest.raises(ConfigError, match="no configuration of the space fits this device"):
        run_search(few)
    few = dataclasses.replace(few, trials_per_gpu=1)
    assert run_search(few, confirm=lambda plan: False).reason == "not started"


def children() -> list[psutil.Process]:
    return [worker for server in psutil.Process().children() for worker in server.children()]


def test_two_workers_measure_at_once_and_no_process_stays() -> None:
    config = tiny_config()
    with WorkerPool(1, device="cpu", threads=1) as pool:
        speeds = pool.measure_together(config, 0.05, 2)
        assert isinstance(speeds, list)
        assert len(speeds) == len(children()) == 2
        assert min(speeds) > 0
        wrong = config.with_changes(device="cuda:99")
        assert "cuda:99" in str(pool.measure_together(wrong, 0.05, 2))
        assert isinstance(pool.measure_together(config, 0.05, 2), list)  # nobody waits any more
    assert children() == []


def test_all_steps_count_where_a_device_is_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every fifth wait is long, as when another process has the GPU: a median would not see it."""
    calls = itertools.count()

    def wait(device: torch.device) -> None:
        if next(calls) % 5 == 4:
            time.sleep(0.05)

    monkeypatch.setattr(throughput, "synchronize", wait)
    config = tiny_config(batch_size=1)
    warm: list[int] = []
    together = measure_tokens_per_second(config, 0.3, lambda: warm.append(1))
    assert warm == [1]
    assert together < 0.7 * measure_tokens_per_second(config, 0.3)


def test_auto_means_the_gpu_of_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    current: list[torch.device] = [torch.device("cuda", 0)]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: current[-1].index)
    set_device: Callable[[torch.device], None] = current.append
    monkeypatch.setattr(torch.cuda, "set_device", set_device)
    assert torch_device("auto") == torch.device("cuda:0")
    settle_device("cuda:1")
    assert torch_device("auto") == torch.device("cuda:1")


def test_a_worker_settles_on_its_gpu_before_it_says_what_it_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    info = FakeGpus(SPEEDS.__getitem__).info
    done: list[str] = []
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)
    monkeypatch.setattr(device_module, "settle_device", done.append)
    monkeypatch.setattr(
        device_module, "detect_device", lambda spec: info if done == [spec] else None
    )
    ours, theirs = Pipe()
    ours.send(None)
    worker_main(theirs, "cuda:1", 1, None, Path.cwd())
    assert ours.recv() == Ready(info)
