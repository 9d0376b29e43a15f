"""Settings of all tests."""

from __future__ import annotations

import os
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator

import pytest
from hypothesis import settings

from budgetsweep.cli.main import main

# A busy machine is slow, not wrong: speed is measured in benchmarks/, never in a test. A commit is
# always tried with the same examples, so that it is not refused for what it did not change; new
# ones are looked for with HYPOTHESIS_PROFILE=explore.
settings.register_profile("budgetsweep", deadline=None, derandomize=True)
settings.register_profile("explore", deadline=None, max_examples=1000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "budgetsweep"))

if "PYTEST_XDIST_WORKER" in os.environ:  # two threads for each of two test processes are slower
    os.environ.setdefault("OMP_NUM_THREADS", "1")


SLOW_SECONDS = 10.0
"""A test that takes longer is marked `slow`; in CI one that is not fails the session."""
_seconds: dict[str, float] = defaultdict(float)
_unmarked: set[str] = set()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Add up what a test and its own set-up take."""
    _seconds[report.nodeid] += report.duration
    if _seconds[report.nodeid] > SLOW_SECONDS and "slow" not in report.keywords:
        _unmarked.add(report.nodeid)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name the tests that lack the mark."""
    for name in sorted(_unmarked):
        terminalreporter.write_line(f"not marked slow, {_seconds[name]:.0f} s: {name}")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail in CI, whose machine is quiet; elsewhere other work may have slowed a test down."""
    if _unmarked and "CI" in os.environ and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(autouse=True)
def _denormals_are_numbers() -> Iterator[None]:
    """A command run in the test process flushes denormals to zero; the next test expects them."""
    yield
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_flush_denormal(False)


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command through the real entry point, which must refuse; the one line on stderr."""

    def call(*words: str) -> str:
        with pytest.raises(SystemExit) as caught:
            main(list(words))
        assert caught.value.code == 2
        error = capsys.readouterr().err.strip()
        assert len(error.splitlines()) == 1
        assert error.startswith("Error: ")
        return error

    return call


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Drop tests marked `gpu` where there is no CUDA device."""
    if any(item.get_closest_marker("gpu") for item in items):
        import torch

        if not torch.cuda.is_available():
            items[:] = [item for item in items if not item.get_closest_marker("gpu")]
