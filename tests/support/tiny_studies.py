"""Settings of a study for tests that need any."""

from __future__ import annotations

from typing import Any

from studies.database.study_settings import StudySettings


def study_settings(**changes: Any) -> StudySettings:
    """A study of 1e15 FLOPs; keywords replace fields."""
    values: dict[str, Any] = {
        "budget_flops": 10**15, "convention": "nanogpt", "sampler": "tpe", "seed": 0,
        "space": {"parameters": {"n_embd": {"value": 16}}}, "base": {},
    }  # fmt: skip
    return StudySettings(**{**values, **changes})
