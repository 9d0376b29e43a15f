"""The device: found, described, measured."""

from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from budgetsweep.errors import ConfigError
from tests.support.tiny_runs import tiny_config
from trainer.hardware import process_memory
from trainer.hardware.compilation import wants_compile
from trainer.hardware.device import (
    autocast_context,
    configure_threads,
    detect_device,
    enough_memory,
    flushing_denormals,
    has_native_bf16,
    random_state,
    set_random_state,
    torch_device,
    uses_bf16,
)
from trainer.throughput import measure_tokens_per_second

CPU = torch.device("cpu")


def test_the_cpu_is_described() -> None:
    info = detect_device("cpu")
    assert info.kind == "cpu"
    assert info.name
    assert 0 < info.memory_bytes <= psutil.virtual_memory().total
    assert info.n_threads == torch.get_num_threads()
    assert info.bf16 == has_native_bf16(CPU)


def test_a_device_that_is_not_here_is_one_clear_line() -> None:
    missing = f"cuda:{torch.cuda.device_count()}"
    with pytest.raises(ConfigError, match=r"CUDA device.* here; use device: auto"):
        torch_device(missing)
    assert torch_device("auto").type in ("cpu", "cuda", "mps")
    for unknown in ("gpu", "cuda:x", "cuda:-1", ""):
        with pytest.raises(ConfigError, match="expected auto, cpu, mps, cuda or cuda:N"):
            torch_device(unknown)


def test_autocast_is_what_the_configuration_says() -> None:
    assert uses_bf16(tiny_config(autocast="bf16"), CPU)
    assert not uses_bf16(tiny_config(autocast="off"), CPU)
    assert uses_bf16(tiny_config(autocast="auto"), CPU) == has_native_bf16(CPU)
    matrix = torch.ones(2, 2)
    context = autocast_context(tiny_config(autocast="bf16"), CPU)
    for _ in range(2):
        with context:
            assert (matrix @ matrix).dtype == torch.bfloat16
    assert (matrix @ matrix).dtype == torch.float32


def test_compiling_is_decided_by_configuration_and_device_alone() -> None:
    cuda = torch.device("cuda")
    short, long = tiny_config(), tiny_config(num_training_steps=10**10)
    assert not wants_compile(long, CPU)  # measured: it never paid there
    assert not wants_compile(short, cuda)
    assert wants_compile(long, cuda)
    assert wants_compile(short.with_changes(compile="on"), CPU)
    assert not wants_compile(long.with_changes(compile="off"), cuda)


def test_asking_to_compile_without_a_compiler_is_one_clear_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(ConfigError, match=r"needs a C\+\+ compiler"):
        wants_compile(tiny_config(compile="on"), CPU)


def test_random_state_comes_back() -> None:
    before = random_state(CPU)
    first = torch.rand(5)
    set_random_state(CPU, before)
    assert torch.equal(torch.rand(5), first)


def test_denormals_count_as_zero_only_where_asked() -> None:
    def product() -> float:
        return (torch.full((8,), 1e-30) * 1e-10).sum().item()

    assert product() > 0.0
    with flushing_denormals():
        assert product() == 0.0
        with flushing_denormals():
            pass
        assert product() == 0.0
    assert product() > 0.0
    configure_threads(1)
    try:
        assert product() == 0.0
        assert torch.get_num_threads() == 1
    finally:
        torch.set_flush_denormal(False)


def test_speed_is_measured_without_a_trace() -> None:
    small = tiny_config(num_training_steps=1)
    large = tiny_config(
        num_training_steps=1, seq_len=128,
        shape={"n_embd": 256, "n_head": 4, "n_layer": 6, "n_positions": 128},
    )  # fmt: skip
    before = torch.get_rng_state()
    fast = measure_tokens_per_second(small, seconds=0.3)
    slow = measure_tokens_per_second(large, seconds=0.3)
    assert torch.equal(torch.get_rng_state(), before)
    # 5 million parameters against 11 thousand: far apart on any machine and under any load.
    assert fast > 2 * slow > 0


def control_group(folder: Path, version: int, limit: str, usage: int, cache: int) -> None:
    names = {
        1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        2: ("memory.max", "memory.current", "inactive_file"),
    }[version]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{usage}\n")
    (folder / "memory.stat").write_text(f"anon 1\n{names[2]} {cache}\nfile 7\n")


@pytest.mark.parametrize(
    ("version", "line", "base"), [(1, "4:memory:/a/b", "memory"), (2, "0::/a/b", "")]
)
def test_a_limit_on_the_control_group_counts(
    tmp_path: Path, version: int, line: str, base: str
) -> None:
    proc = tmp_path / "cgroup"
    proc.write_text(f"9:cpu:/\n{line}\n")
    root = tmp_path / "sys"
    free = psutil.virtual_memory().available
    assert process_memory.available_memory_bytes(proc, root) > 0.5 * free  # no such group
    control_group(root / base / "a" / "b", version, "max", 500, 100)
    assert process_memory.available_memory_bytes(proc, root) > 0.5 * free  # no limit
    control_group(root / base / "a", version, "3000000", 1_000_000, 200_000)
    assert process_memory.available_memory_bytes(proc, root) == 2_200_000  # of the group around it
    control_group(root / base / "a" / "b", version, "1000000", 900_000, 50_000)
    assert process_memory.available_memory_bytes(proc, root) == 150_000
    control_group(root / base / "a" / "b", version, "1000", 5000, 0)
    assert process_memory.available_memory_bytes(proc, root) == 0


def test_the_peak_starts_anew() -> None:
    process_memory.reset_peak_rss()
    before = process_memory.peak_resident_bytes()
    assert before is not None
    block = np.ones(25_000_000)
    peak = process_memory.peak_resident_bytes()
    assert peak is not None
    assert peak - before > 0.9 * block.nbytes
    del block
    process_memory.release_freed_memory()
    process_memory.reset_peak_rss()
    after = process_memory.peak_resident_bytes()
    assert after is not None
    assert peak - after > 0.9 * 200_000_000


def test_pages_of_a_mapped_file_do_not_count(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    path.write_bytes(bytes(40_000_000))
    process_memory.release_freed_memory()
    process_memory.reset_peak_rss()
    before = process_memory.peak_resident_bytes()
    mapped = np.memmap(path, dtype=np.uint16, mode="r")
    assert mapped.sum() == 0
    after = process_memory.peak_resident_bytes()
    assert before is not None
    assert after is not None
    assert abs(after - before) < 4_000_000


def test_used_up_memory_is_said_in_a_line_and_a_defect_is_not() -> None:
    one_line = pytest.raises(ConfigError, match="not enough memory on this device: take less")
    with one_line, enough_memory("take less"):
        torch.empty(1 << 60, dtype=torch.uint8)
    with pytest.raises(RuntimeError, match="size"), enough_memory("take less"):
        torch.ones(2) @ torch.ones(3)
