"""How well a fit predicts runs that it has not seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from studies.scaling.fit_data import FitPoint, budgets_of
from studies.scaling.result import UNDERTRAINED_BELOW, ScalingFit


@dataclass(frozen=True)
class Part:
    """Errors over some of the runs."""

    n: int
    mean_error: float | None
    """Mean of |predicted / measured − 1|; None: no runs."""
    coverage: float | None
    """Share of measured losses within their 80 % interval."""


@dataclass(frozen=True)
class Score:
    """Errors over runs that were held out."""

    all: Part
    valid: Part
    """Those with enough tokens per parameter for the law to hold (`UNDERTRAINED_BELOW`)."""
    best: Part
    """The lowest loss of each budget."""
    regret_nats: tuple[float, ...]
    """Of each budget with two sizes or more: measured loss of the size that the fit would choose,
    over the lowest measured."""

    def sentences(self) -> list[str]:
        """The scores in words."""
        lines = [f"of the {self.all.n} runs that were held out:"]
        for name, part in (
            ("all", self.all),
            (f"with {UNDERTRAINED_BELOW:g} tokens per parameter or more", self.valid),
            ("the best of each budget", self.best),
        ):
            if part.mean_error is None or part.coverage is None:
                continue
            lines.append(
                f"  {name} ({part.n}): mean error {100 * part.mean_error:.2f} %, "
                f"{100 * part.coverage:.0f} % within the 80 % interval"
            )
        if self.regret_nats:
            lines.append(
                f"  choosing the size by the fit has a regret of {np.mean(self.regret_nats):.3f} "
                f"nats (mean of {len(self.regret_nats)} budgets)"
            )
        return lines


def score(fit: ScalingFit, held_out: Sequence[FitPoint]) -> Score:
    """Score the predictions of runs that the fit has not seen; given at least one."""
    predicted = [
        fit.predict(one.n_params, one.tokens, max_lr=one.max_lr, batch_tokens=one.batch_tokens)
        for one in held_out
    ]
    sizes, tokens, measured, flops = (
        np.array([getattr(one, name) for one in held_out])
        for name in ("n_params", "tokens", "loss_nats", "flops")
    )
    errors = np.abs(np.array([one.loss_nats for one in predicted]) / measured - 1)
    inside = np.array([one.low_nats for one in predicted]) <= measured
    inside &= measured <= np.array([one.high_nats for one in predicted])
    budgets = np.log(budgets_of(held_out))
    own = np.abs(np.log(flops)[:, None] - budgets).argmin(axis=1)
    best, regrets = [], []
    for budget in range(len(budgets)):
        members = np.flatnonzero(own == budget)
        lowest = members[measured[members].argmin()]
        best.append(lowest)
        if len(set(sizes[members])) > 1:
            chosen = members[fit.losses(sizes[members], tokens[members]).argmin()]
            regrets.append(float(measured[chosen] - measured[lowest]))

    def part(members: NDArray[np.intp]) -> Part:
        if not len(members):
            return Part(0, None, None)
        return Part(len(members), float(errors[members].mean()), float(inside[members].mean()))

    valid = np.flatnonzero(tokens >= UNDERTRAINED_BELOW * sizes)
    return Score(part(np.arange(len(measured))), part(valid), part(np.array(best)), tuple(regrets))
