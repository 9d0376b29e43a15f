"""How well a fit predicts runs that it has not seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

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
    errors, inside = [], []
    for one in held_out:
        predicted = fit.predict(
            one.n_params, one.tokens, max_lr=one.max_lr, batch_tokens=one.batch_tokens
        )
        errors.append(abs(predicted.loss_nats / one.loss_nats - 1))
        inside.append(predicted.low_nats <= one.loss_nats <= predicted.high_nats)
    budgets = np.log(budgets_of(held_out))
    own = [int(np.abs(budgets - np.log(one.flops)).argmin()) for one in held_out]
    best, regrets = [], []
    for budget in range(len(budgets)):
        members = [i for i, b in enumerate(own) if b == budget]
        lowest = min(members, key=lambda i: held_out[i].loss_nats)
        best.append(lowest)
        if len({held_out[i].n_params for i in members}) > 1:
            losses = fit.losses(
                [held_out[i].n_params for i in members], [held_out[i].tokens for i in members]
            )
            chosen = members[int(losses.argmin())]
            regrets.append(held_out[chosen].loss_nats - held_out[lowest].loss_nats)
    valid = [i for i, one in enumerate(held_out) if one.tokens >= UNDERTRAINED_BELOW * one.n_params]

    def part(members: Sequence[int]) -> Part:
        if not members:
            return Part(0, None, None)
        return Part(
            len(members),
            float(np.mean([errors[i] for i in members])),
            float(np.mean([inside[i] for i in members])),
        )

    return Score(part(range(len(held_out))), part(valid), part(best), tuple(regrets))
