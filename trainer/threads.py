"""How arithmetic threads wait. No torch: it must be settled before torch is loaded."""

from __future__ import annotations

import os


def let_threads_sleep() -> None:
    """Have OpenMP's threads sleep while they wait, unless the user has chosen otherwise.

    They spin by default. On a machine with anything else to do they spin against each other: two
    threads on two busy cores trained 4 to 18 times slower than sleeping ones. Call it before torch
    is imported; processes started afterwards inherit it.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
