"""The device of a run: which one, how much memory, which precision, its random numbers."""

from __future__ import annotations

import platform
import re
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any

import torch
from torch import Tensor

from budgetsweep.errors import ConfigError
from trainer.config import RunConfig
from trainer.events import DeviceInfo, DeviceKind
from trainer.hardware.process_memory import (
    available_memory_bytes,
    cpu_name,
    keep_freed_memory,
    peak_resident_bytes,
    release_freed_memory,
    reset_peak_rss,
)


def torch_device(spec: str = "auto") -> torch.device:
    """The device that `auto`, `cpu`, `mps`, `cuda` or `cuda:N` means here.

    Raises:
        ConfigError: it is none of these, or this machine or build of PyTorch does not have it.
    """
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d{1,4})?", spec):
        raise ConfigError(f"device = {spec}: expected auto, cpu, mps, cuda or cuda:N")
    if spec == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    device = torch.device(spec)
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise ConfigError(
                f"device = {spec}: PyTorch {torch.__version__} finds "
                f"{f'{count} CUDA device(s)' if count else 'no CUDA device'} here; "
                "use device: auto"
            )
        return torch.device("cuda", device.index or 0)
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("device = mps: not available here; use device: auto")
    return device


def use_gpu_for_auto(spec: str) -> None:
    """Make the GPU of `spec` the one that `auto` means from now on in this process.

    Configurations of a search say `auto` on every GPU. Errors as in `torch_device`.
    """
    device = torch_device(spec)
    if device.type == "cuda":
        torch.cuda.set_device(device)


def detect_device(spec: str = "auto") -> DeviceInfo:
    """The device that a run with this setting would use, and its free memory now.

    Errors as in `torch_device`.
    """
    device = torch_device(spec)
    kind: DeviceKind = device.type  # type: ignore[assignment]
    count = 1
    if kind == "cuda":
        memory = torch.cuda.mem_get_info(device)[0]
        count = torch.cuda.device_count()
    elif kind == "mps":
        memory = torch.mps.recommended_max_memory()
    else:
        memory = available_memory_bytes()
    return DeviceInfo(
        kind=kind,
        name=device_name(device),
        memory_bytes=memory,
        bf16=has_native_bf16(device),
        n_threads=torch.get_num_threads(),
        count=count,
    )


def device_name(device: torch.device) -> str:
    """Model name of the device."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"Apple GPU ({platform.machine()})" if device.type == "mps" else cpu_name()


def has_native_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bf16 matrices in hardware.

    CUDA from compute capability 8.0; x86 with AMX or AVX-512 BF16; ARM with BF16. Not MPS: its
    autocast gains nothing at these sizes.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        has = torch.cpu.get_capabilities()
        return any(has.get(name, False) for name in ("amx_bf16", "avx512_bf16", "bf16"))
    return False


def uses_bf16(config: RunConfig, device: torch.device) -> bool:
    """Whether a run computes in bf16 on this device (`autocast`: auto, bf16 or off)."""
    return config.autocast == "bf16" or (config.autocast == "auto" and has_native_bf16(device))


def autocast_context(config: RunConfig, device: torch.device) -> AbstractContextManager[Any]:
    """Context of a run's forward passes; may be entered again and again."""
    if uses_bf16(config, device):
        return torch.autocast(device.type, torch.bfloat16)
    return nullcontext()


def configure_threads(n_threads: int | None = None) -> None:
    """Set up arithmetic on the CPU; call it once a process, before its first tensor.

    Denormal numbers count as zero: an attention or output softmax that is far off makes them by the
    million, and each costs a hundred cycles. `n_threads` None leaves PyTorch's choice, one a core.
    """
    torch.set_flush_denormal(True)  # threads that are made later inherit it
    if n_threads is not None:
        torch.set_num_threads(n_threads)
    keep_freed_memory()


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all that was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


@contextmanager
def flushing_denormals() -> Iterator[None]:
    """Count denormal numbers as zero within; the setting of before comes back."""
    before = sys.float_info.min / 2 == 0.0  # the processor's flag can be seen, not asked for
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


def random_state(device: torch.device) -> dict[str, Tensor]:
    """State of the random generators that a run on this device uses."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        state["mps"] = torch.mps.get_rng_state()
    return state


def set_random_state(device: torch.device, state: dict[str, Tensor]) -> None:
    """Set what `random_state` returned; a generator that it lacks is left alone."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
    elif device.type == "mps" and "mps" in state:
        torch.mps.set_rng_state(state["mps"])


def release_gpu_memory() -> None:
    """Give what PyTorch keeps of freed GPU memory back to the other processes on that GPU."""
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        with suppress(RuntimeError):  # after a broken capture: the run's result matters more
            torch.cuda.empty_cache()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this says that a device's memory is used up: for CPU and MPS a RuntimeError."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error)
    return "can't allocate memory" in text or "out of memory" in text


@contextmanager
def enough_memory(advice: str) -> Iterator[None]:
    """Turn running out of memory within into a `ConfigError` of one line that ends in `advice`."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise ConfigError(f"not enough memory on this device: {advice}") from error


def start_peak_memory(device: torch.device) -> None:
    """Begin to watch the peak of memory, for `peak_memory_bytes`."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        release_freed_memory()
        reset_peak_rss()


def peak_memory_bytes(device: torch.device) -> int | None:
    """Peak since `start_peak_memory`: of the allocator on CUDA, of this process elsewhere."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return peak_resident_bytes()
