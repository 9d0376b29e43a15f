"""Settings of all tests."""

from __future__ import annotations

from hypothesis import settings

# A busy machine is slow, not wrong: speed is measured in benchmarks/, never in a test.
settings.register_profile("budgetsweep", deadline=None)
settings.load_profile("budgetsweep")
