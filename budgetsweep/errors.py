"""Everything that budgetsweep raises on purpose.

A `UserError` is a mistake that the user can fix: the command line prints its message as one
line and exits with code 2. The message says what is wrong, where, what was expected and what to
do. Any other exception is a defect of ours and keeps its traceback.
"""

from __future__ import annotations

from enum import StrEnum


class Reason(StrEnum):
    """Why a proposal is refused."""

    OVER_BUDGET = "over_budget"
    INVALID_SHAPE = "invalid_shape"
    INVALID_VALUE = "invalid_value"
    OUT_OF_MEMORY = "out_of_memory"
    TOO_LITTLE_VALIDATION_DATA = "too_little_validation_data"
    TOO_MANY_EPOCHS = "too_many_epochs"
    DUPLICATE = "duplicate"
    NO_RUN = "no_run"


class BudgetsweepError(Exception):
    """Root of the exceptions of this package."""


class UserError(BudgetsweepError):
    """Something the user can fix; shown as one line, exit code 2."""


class ConfigError(UserError):
    """A configuration, search space or command-line setting is not acceptable.

    `reason` tells a program what a person reads in the message: an invalid shape or value.
    """

    def __init__(self, message: str, reason: Reason = Reason.INVALID_VALUE) -> None:
        super().__init__(message)
        self.reason = reason


class DataError(UserError):
    """Text, token files or tokenizer files are missing, damaged or foreign."""


class CheckpointError(UserError):
    """A checkpoint or weights file is missing, damaged or belongs to another run."""


class StudyError(UserError):
    """The study database is missing, foreign, newer than this program, or in use."""


class FitRefused(UserError):
    """Too few runs to fit a scaling law; the message says what to add."""


class BudgetExceeded(BudgetsweepError):
    """A step was asked for that the budget cannot pay. A defect of ours: the meter refuses it."""


class NonFiniteLoss(BudgetsweepError):
    """The training loss became NaN or infinite; the step before the update is named."""

    def __init__(self, step: int, loss: float) -> None:
        super().__init__(f"training loss became {loss} at step {step}")
        self.step = step
        self.loss = loss
