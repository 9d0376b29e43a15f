"""What the operating system says about this process and its machine. No torch."""

from __future__ import annotations

import ctypes
import functools
import platform
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil

if sys.platform != "win32":
    import resource


@functools.cache
def keep_freed_memory() -> None:
    """Let glibc keep freed blocks of up to 32 MiB for the next step.

    By default blocks from 128 KiB on can be mappings of their own, given back when freed and
    faulted in again, page by page, at their next use. Measured on a Xeon (torch 2.13, one thread):
    the system time of a step falls from 0.05-0.19 s, 6 to 12 % of it, to 0.00-0.002 s. Without any
    mapping holes cost 2.5 GB more at 5 GB of large tensors.
    """
    mallopt = _glibc("mallopt")
    if mallopt is not None:
        m_mmap_threshold, m_trim_threshold = -3, -1  # malloc.h
        mallopt(m_mmap_threshold, 32 << 20)
        mallopt(m_trim_threshold, 2**31 - 1)


def release_freed_memory() -> None:
    """Give memory that earlier runs of this process freed back to the system."""
    trim = _glibc("malloc_trim")
    if trim is not None:
        trim(0)


def _glibc(function: str) -> Callable[..., int] | None:
    if platform.system() != "Linux":
        return None
    return getattr(ctypes.CDLL(None), function, None)  # musl has neither


def cpu_name() -> str:
    """Model name of the processor."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine() or "CPU"


def available_memory_bytes(
    proc_cgroup: Path = Path("/proc/self/cgroup"), cgroup_root: Path = Path("/sys/fs/cgroup")
) -> int:
    """Memory that this process may still take: what the system has, within its cgroup's limit."""
    available = psutil.virtual_memory().available
    return max(0, min([available, *_cgroup_rooms(proc_cgroup, cgroup_root)]))


def _cgroup_rooms(proc_cgroup: Path, root: Path) -> list[int]:
    """Bytes left in each control group (version 1 or 2) that limits this process."""
    try:
        lines = proc_cgroup.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    rooms = []
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers == "":
            base, names = root, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            base = root / "memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        # A container may see its own group as the root: then the path leads nowhere.
        innermost = base / group.lstrip("/")
        for folder in (innermost, *innermost.parents):
            room = _room(folder, *names)
            if room is not None:
                rooms.append(room)
            if folder == base:
                break
    return rooms


def _room(folder: Path, limit_name: str, usage_name: str, cache_name: str) -> int | None:
    """Limit less usage, page cache that can be dropped counted as free; None: no limit."""
    try:
        limit = int((folder / limit_name).read_text(encoding="utf-8"))
        usage = int((folder / usage_name).read_text(encoding="utf-8"))
        stat = (folder / "memory.stat").read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):  # no such group, or "max"
        return None
    cache = next((int(line.split()[1]) for line in stat if line.startswith(f"{cache_name} ")), 0)
    return limit - usage + cache


def reset_peak_rss() -> None:
    """Make `peak_resident_bytes` start anew from what is resident now, where that is possible."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # proc(5)


def peak_resident_bytes() -> int | None:
    """Most memory of this process's own since `reset_peak_rss`, or since the process began.

    On Linux the pages of mapped files that are resident now (libraries, token shards) do not
    count: the system drops them when it needs the room, and how many there are depends on what
    ran before. Elsewhere they cannot be distinguished.
    """
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
        lines = [line.split() for line in status.splitlines() if line.endswith(" kB")]
        sizes = {words[0]: int(words[1]) for words in lines}
        return (sizes["VmHWM:"] - sizes["RssFile:"]) * 1024
    except (OSError, KeyError):
        pass
    if sys.platform == "win32":
        return None
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage(2) of each
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
