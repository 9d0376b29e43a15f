"""What tests of several commands share."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from budgetsweep.cli.main import main


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
