"""Leaves out what this machine cannot run."""

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Drop tests marked `gpu` where there is no CUDA device."""
    if any(item.get_closest_marker("gpu") for item in items):
        import torch

        if not torch.cuda.is_available():
            items[:] = [item for item in items if not item.get_closest_marker("gpu")]
