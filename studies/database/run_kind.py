"""Why a run was made. No SQLAlchemy: what draws progress needs no more than this."""

from __future__ import annotations

from enum import StrEnum


class RunKind(StrEnum):
    """Why a run was made."""

    TRIAL = "trial"
    """A proposal of the sampler."""
    FINALIST = "finalist"
    """A trial's shape trained by the search itself at a budget level above the study's."""
    PROMOTION = "promotion"
    """A trial's shape trained at a larger budget because the user asked for it."""
