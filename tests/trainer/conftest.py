"""What several tests of runs begin with; a file that needs another has its own of the same name."""

from pathlib import Path

import pytest

from tests.support.tiny_runs import drive, tiny_config, tiny_data
from trainer.data.shards.tokens import TokenData


@pytest.fixture(scope="module")
def data() -> TokenData:
    """A little text."""
    return tiny_data()


@pytest.fixture(scope="module")
def whole(data: TokenData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted run, with dropout and gradient accumulation."""
    run_dir = tmp_path_factory.mktemp("whole")
    result, _ = drive(tiny_config(), data, run_dir)
    assert result.status == "complete"
    return run_dir
