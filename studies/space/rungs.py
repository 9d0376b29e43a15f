"""Rungs: the budgets of a search's trials, as multiples of its own.

A law of the loss needs runs of several budgets. With `--rungs 0.1,0.3,1` the trials take the rungs
in turn, the whole budget first, so that each rung gets an equal number of them and the search costs
less than one without. Rungs above 1 are for finalists, the most promising trials once more: each
such rung costs about an eighth of what the trials at the whole budget would cost, one run at least.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

from budgetsweep.errors import ConfigError

FINALISTS_SHARE = Fraction(1, 8)
"""Cost of a rung above 1, of as many budgets as there are trials (*assumption*)."""
LEAST, MOST = Fraction(1, 1000), Fraction(1000)
DEFAULT_RUNGS = "0.1,0.3,1"
"""Of a search that names none, with its look at the promotion: in simulated worlds 0.8 nats less at
100 times the budget for 0.02 more at its own (docs/experiments.md)."""


@dataclass(frozen=True)
class Rungs:
    """Budgets of a study's runs, as exact multiples of its own; ascending, 1 among them."""

    multiples: tuple[Fraction, ...] = (Fraction(1),)

    def __post_init__(self) -> None:
        bad = [multiple for multiple in self.multiples if not LEAST <= multiple <= MOST]
        if bad:
            raise ConfigError(
                f"--rungs: {float(bad[0]):g} is not between {float(LEAST):g} and {float(MOST):g}"
            )
        if Fraction(1) not in self.multiples:
            raise ConfigError("--rungs: 1, the budget itself, must be among them, as in 0.1,0.3,1")
        if list(self.multiples) != sorted(set(self.multiples)):
            raise ConfigError("--rungs: expected ascending numbers, none twice, as in 0.1,0.3,1")

    @classmethod
    def parse(cls, text: str) -> Rungs:
        """Rungs as written, `0.1,0.3,1`; exact, without a float's rounding.

        Raises:
            ConfigError: not such a list.
        """
        try:
            multiples = tuple(Fraction(part.strip()) for part in text.split(","))
        except (ValueError, ZeroDivisionError) as error:
            raise ConfigError(
                f"--rungs {text[:40]!r}: expected multiples of the budget such as 0.1,0.3,1"
            ) from error
        return cls(multiples)

    def __str__(self) -> str:
        return ",".join(f"{float(multiple):g}" for multiple in self.multiples)

    @property
    def of_trials(self) -> tuple[Fraction, ...]:
        """Rungs of proposals, the whole budget first, then the others ascending."""
        return (Fraction(1), *(multiple for multiple in self.multiples if multiple < 1))

    @property
    def of_finalists(self) -> tuple[Fraction, ...]:
        """Rungs above the budget, ascending."""
        return tuple(multiple for multiple in self.multiples if multiple > 1)

    def of_trial(self, started: int) -> Fraction:
        """The rung of the trial that is started after `started` others."""
        return self.of_trials[started % len(self.of_trials)]

    def finalists(self, multiple: Fraction, n_trials: int) -> int:
        """How many trials are promoted to a rung above the budget."""
        return max(1, math.floor(n_trials * FINALISTS_SHARE / multiple))

    def budgets(self, n_trials: int) -> Fraction:
        """Cost of all runs in budgets: of `n_trials` trials and their finalists, at most."""
        trials = sum((self.of_trial(number) for number in range(n_trials)), Fraction(0))
        above = (rung * self.finalists(rung, n_trials) for rung in self.of_finalists)
        return trials + sum(above, Fraction(0))


def rung_budget(multiple: Fraction, budget_flops: int) -> int:
    """Training FLOPs of a run on a rung; never above the multiple."""
    return math.floor(multiple * budget_flops)
