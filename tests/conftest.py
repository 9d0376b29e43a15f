"""Settings of all tests."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import pytest
from hypothesis import settings

# A busy machine is slow, not wrong: speed is measured in benchmarks/, never in a test. A commit is
# always tried with the same examples, so that it is not refused for what it did not change; new
# ones are looked for with HYPOTHESIS_PROFILE=explore.
settings.register_profile("budgetsweep", deadline=None, derandomize=True)
settings.register_profile("explore", deadline=None, max_examples=1000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "budgetsweep"))

if "PYTEST_XDIST_WORKER" in os.environ:  # two threads for each of two test processes are slower
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def _denormals_are_numbers() -> Iterator[None]:
    """A command run in the test process flushes denormals to zero; the next test expects them."""
    yield
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_flush_denormal(False)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Drop tests marked `gpu` where there is no CUDA device."""
    if any(item.get_closest_marker("gpu") for item in items):
        import torch

        if not torch.cuda.is_available():
            items[:] = [item for item in items if not item.get_closest_marker("gpu")]
