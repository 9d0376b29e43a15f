"""The environment that torch's libraries read when they are loaded. No torch here."""

from __future__ import annotations

import os

KERNEL_CACHE_ENTRIES = 64
"""Generated matrix kernels that a process keeps: a run needs 20 to 30 (one a shape of product)."""


def prepare_environment() -> None:
    """Settings for OpenMP and oneDNN, unless the user has chosen otherwise (docs/experiments.md).

    Call it before torch is imported; processes started afterwards inherit it. OpenMP's threads
    sleep while they wait: where anything else runs, spinning ones train 4 to 18 times slower.
    oneDNN keeps `KERNEL_CACHE_ENTRIES` kernels, not 1,024, which would fill the memory.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(KERNEL_CACHE_ENTRIES))
    os.environ.setdefault("LRU_CACHE_CAPACITY", str(KERNEL_CACHE_ENTRIES))
