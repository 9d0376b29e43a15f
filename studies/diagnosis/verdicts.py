"""The verdicts: their names, what people call them, and what to do about each."""

from __future__ import annotations

from dataclasses import dataclass

from studies.diagnosis.steps import StepsNeeded

HEALTHY = "healthy"

CURES = {
    "leak": "check the causal mask, that targets are the tokens after the inputs, and that the "
    "validation set is not in the training set",
    "grad_not_cleared": "call optimizer.zero_grad() once per optimiser step",
    "data_in_order": "shuffle: draw the windows of a batch from the whole training set",
    "overfitting": "use more data, fewer steps or a smaller model; add dropout",
    "lr_too_high": "try max_lr 3 and 10 times lower; clip the gradient at 1",
    "lr_too_low": "try max_lr 3 and 10 times higher",
    "warmup_too_long": "end the warm-up after 1 to 10 % of the steps",
    "batch_too_small": "use more sequences per step (batch_size or grad_accumulation_steps)",
    "lr_constant": "let the learning rate fall to a tenth of its peak or less by the last step",
    HEALTHY: "nothing",
}
"""What to do, by name. The order is that of the verdicts: what spoils the result before what only
wastes compute, and a cause before what it may look like."""

NAMES = tuple(CURES)

LABELS = {
    "leak": "the model sees the future",
    "grad_not_cleared": "gradients are not cleared",
    "data_in_order": "data in order, not shuffled",
    "overfitting": "overfitting",
    "lr_too_high": "learning rate too high",
    "lr_too_low": "learning rate too low",
    "warmup_too_long": "warm-up too long",
    "batch_too_small": "batch too small",
    "lr_constant": "learning rate constant, not decayed",
    HEALTHY: "healthy",
}
"""As a person reads them."""


@dataclass(frozen=True)
class Verdict:
    """One finding."""

    name: str
    """One of `NAMES`."""
    evidence: str
    """One line with the figures that speak for it."""

    @property
    def label(self) -> str:
        """As a person reads it."""
        return LABELS[self.name]

    @property
    def cure(self) -> str:
        """What to do, in one line."""
        return CURES[self.name]


@dataclass(frozen=True)
class Diagnosis:
    """Everything that a curve says."""

    verdicts: tuple[Verdict, ...]
    """In the order of `NAMES`; `healthy` only alone. Empty: too few points to say anything."""
    steps: StepsNeeded | None
    """How many steps suffice; None: too few points."""
    n_points: int
    unseen: tuple[str, ...] = ()
    """What could not be looked for, each with the reason."""

    @property
    def is_healthy(self) -> bool:
        """Whether nothing was found in a curve that had enough points."""
        return bool(self.verdicts) and self.verdicts[0].name == HEALTHY
