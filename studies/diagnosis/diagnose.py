"""From a curve to its verdicts: a pure function."""

from __future__ import annotations

import numpy as np

from studies.diagnosis.curves import Curve
from studies.diagnosis.facts import CurveFacts
from studies.diagnosis.rules import RULES
from studies.diagnosis.signals import FEWEST_POINTS, MOST_POINTS, Signals
from studies.diagnosis.steps import steps_needed
from studies.diagnosis.verdicts import HEALTHY, NAMES, Diagnosis, Verdict

EXPLAINS = {
    "leak": {"overfitting", "lr_too_high", "lr_too_low", "data_in_order", "batch_too_small"},
    "grad_not_cleared": {
        "overfitting", "lr_too_high", "lr_too_low", "data_in_order", "batch_too_small",
    },
    "data_in_order": {"batch_too_small"},
    "overfitting": {"lr_too_high"},
    "lr_too_high": {"lr_too_low"},
}  # fmt: skip
"""What a verdict explains by itself, so that it is not said again."""


def diagnose(curve: Curve, facts: CurveFacts | None = None) -> Diagnosis:
    """Judge a run by its learning curve; a rule that needs more than is known says nothing.

    The verdicts come gravest first, `healthy` where none fits; none at all where the curve is too
    short to judge (fewer than 12 training losses) and the run did not fail.
    """
    facts = facts or CurveFacts()
    curve = curve.thinned(MOST_POINTS)
    s = Signals(curve, facts)
    evidence: dict[str, str] = {}
    if s.train.size >= FEWEST_POINTS:
        found = {name: why for name, rule in RULES.items() if (why := rule(s)) is not None}
        explained = {other for name in found for other in EXPLAINS.get(name, ())}
        evidence = {name: why for name, why in found.items() if name not in explained}
        evidence = evidence or {HEALTHY: _sound(s)}
    elif facts.diverged:
        evidence = {"lr_too_high": str(facts.failure)}
    verdicts = tuple(Verdict(name, evidence[name]) for name in NAMES if name in evidence)
    steps = steps_needed(curve) if not facts.diverged else None
    return Diagnosis(verdicts, steps, int(s.train.size), _unseen(s))


def _sound(s: Signals) -> str:
    end = float(s.smooth[-1])
    return (
        f"the training loss fell from {s.start_nats:.2f} to {end:.2f} nats, half of it in the "
        f"first {100 * s.half_way:.0f} % of the steps"
    )


def _unseen(s: Signals) -> tuple[str, ...]:
    """What this curve cannot show."""
    if s.train.size < FEWEST_POINTS:
        return (
            f"nothing can be said from {s.train.size} training losses: it takes {FEWEST_POINTS}",
        )
    missing = []
    if s.val.size < 3:
        missing.append("overfitting: fewer than 3 validation losses")
    if s.lr.size < 3:
        missing.append("constant rate, long warm-up: no learning rate was recorded")
    if s.norms.size < 20:
        missing.append("gradients not cleared: fewer than 20 gradient norms")
    if s.facts.sequences_per_step is None:
        missing.append("data in order, in part: the sequences per step are unknown")
    if np.isfinite(s.planned_steps) and s.last_step < 0.95 * s.planned_steps:
        missing.append(f"the rest of the run: {s.last_step:.0f} of {s.planned_steps:.0f} steps")
    return tuple(missing)
