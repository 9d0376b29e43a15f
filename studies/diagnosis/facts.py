"""What is known of a run beside its curve."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from trainer.config import RunConfig


@dataclass(frozen=True)
class CurveFacts:
    """All may be unknown; a rule that needs what is unknown says nothing."""

    num_steps: int | None = None
    """Steps of the whole schedule; a curve may end before."""
    warmup_steps: int | None = None
    sequences_per_step: int | None = None
    """Windows of one optimiser step."""
    tokens_per_step: int | None = None
    grad_clip: float | None = None
    n_vocab: int | None = None
    knows_frequencies: bool = False
    """Whether the head began with the frequencies of the tokens, so that none had to be learned."""
    bytes_per_token: float | None = None
    failure: str | None = None
    """Why the run failed, in one line."""

    @classmethod
    def of_config(
        cls,
        config: Mapping[str, Any],
        *,
        bytes_per_token: float | None = None,
        failure: str | None = None,
    ) -> CurveFacts:
        """Facts of a run's stored configuration; one that cannot be read has none."""
        try:
            run = RunConfig.model_validate(config)
        except ValidationError:
            return cls(bytes_per_token=bytes_per_token, failure=failure)
        is_filled = run.num_training_steps != "fill"
        return cls(
            num_steps=run.steps if is_filled else None,
            warmup_steps=run.warmup_steps if is_filled else None,
            sequences_per_step=run.batch_size * run.grad_accumulation_steps,
            tokens_per_step=run.tokens_per_step,
            grad_clip=run.grad_clip,
            n_vocab=run.model.n_vocab,
            knows_frequencies=getattr(run.model, "head_bias", "none") == "unigram",
            bytes_per_token=1.0 if run.tokenizer_encoding == "bytes" else bytes_per_token,
            failure=failure,
        )

    @property
    def uniform_loss_nats(self) -> float | None:
        """Loss of a model that knows nothing: ln V."""
        return math.log(self.n_vocab) if self.n_vocab else None

    @property
    def diverged(self) -> bool:
        """Whether the run ended because its loss became NaN or infinite."""
        return re.search("became (nan|-?inf)", (self.failure or "").lower()) is not None
