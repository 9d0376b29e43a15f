"""The environment that torch's libraries read when they are loaded. No torch here."""

from __future__ import annotations

import os

KERNEL_CACHE_ENTRIES = 64
"""Generated matrix kernels that a process keeps: a run needs 20 to 30 (one a shape of product)."""


def prepare_environment() -> None:
    """Settings for OpenMP and oneDNN, unless the user has chosen otherwise.

    Call it before torch is imported; processes started afterwards inherit it.

    * OpenMP's threads sleep while they wait. They spin by default, and on a machine with anything
      else to do they spin against each other: two threads on two busy cores trained 4 to 18 times
      slower than sleeping ones.
    * oneDNN keeps `KERNEL_CACHE_ENTRIES` kernels, not 1,024: a process that trained nine shapes in
      turn had grown by 141 MB, with the limit by 42 MB (one run each).
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(KERNEL_CACHE_ENTRIES))
    os.environ.setdefault("LRU_CACHE_CAPACITY", str(KERNEL_CACHE_ENTRIES))
