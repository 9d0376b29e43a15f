"""Which text a run learns from and is measured on. No torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field, field_validator

from budgetsweep.config import StrictModel
from trainer.identity import Identity, Ignored

if TYPE_CHECKING:
    from trainer.data.shards.tokens import TokenData

Count = Annotated[int, Field(ge=1, le=1 << 40, strict=True)]


class DataConfig(StrictModel):
    """Which text a run learns from and is measured on."""

    source: str = "c4"
    """`c4`, `demo`, `hub:owner/name[:config]`, or a path: a text, .jsonl(.gz|.zst|.xz) or .parquet
    file, a folder or glob pattern of them, the course's tokens.npz, or a prepared token folder."""
    validation: str | None = None
    """Path of separate validation text; by default documents are split by hash."""
    text_field: str = "text"
    """Field of a document that holds its text."""
    train_tokens: Annotated[Count | None, Ignored(Identity.STUDY)] = None
    """Only the first so many training tokens; None: all that are prepared."""
    val_tokens: Annotated[Count | None, Ignored(Identity.STUDY)] = None
    """Only the first so many validation tokens; None: all that are prepared."""
    max_epochs: float = Field(default=4.0, gt=0.0)
    """A run that would repeat its training text more often than this is refused."""

    def fixed_to(
        self, prepared: TokenData, train_tokens: int | None, val_tokens: int | None
    ) -> DataConfig:
        """The same text for ever: at most so many of the tokens that are prepared (None: all)."""
        n_train, n_val = len(prepared.train), len(prepared.val)
        limits = {
            "train_tokens": min(n_train, train_tokens or n_train),
            "val_tokens": min(n_val, val_tokens or n_val),
        }
        return self.model_copy(update=limits)

    @field_validator("source")
    @classmethod
    def _not_empty(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("expected c4, demo, hub:owner/name or a path")
        return value
