"""Settings of all tests."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
from hypothesis import settings

# A busy machine is slow, not wrong: speed is measured in benchmarks/, never in a test.
settings.register_profile("budgetsweep", deadline=None)
settings.load_profile("budgetsweep")


@pytest.fixture(autouse=True)
def _denormals_are_numbers() -> Iterator[None]:
    """A command run in the test process flushes denormals to zero; the next test expects them."""
    yield
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_flush_denormal(False)
