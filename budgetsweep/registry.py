"""Modules that register what they define by being imported."""

from __future__ import annotations

import pkgutil
from importlib import import_module


def import_modules_of(package: str) -> None:
    """Import every module that lies directly in a package; sub-packages are left alone."""
    for module in pkgutil.iter_modules(import_module(package).__path__, f"{package}."):
        if not module.ispkg:
            import_module(module.name)
