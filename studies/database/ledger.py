"""The FLOP ledger of a study: exact sums of its entries."""

from __future__ import annotations

import operator
from collections import defaultdict
from dataclasses import dataclass

from sqlalchemy import Connection, select

from model.flops import Convention
from studies.database.tables import LedgerEntry, Run


@dataclass(frozen=True)
class Amount:
    """A quantity of training; whole numbers, exact."""

    steps: int = 0
    """Optimiser steps."""
    tokens: int = 0
    nanogpt: int = 0
    """Training FLOPs in this convention (`model.flops`)."""
    matmul: int = 0
    mac: int = 0

    def flops(self, convention: Convention) -> int:
        """Training FLOPs in `convention`."""
        return int(getattr(self, convention))

    def __add__(self, other: Amount) -> Amount:
        return Amount(*map(operator.add, vars(self).values(), vars(other).values()))


@dataclass(frozen=True)
class Spending:
    """What a run, or all runs of a study, planned and spent so far."""

    planned: Amount = Amount()
    """All steps of an admitted run."""
    spent: Amount = Amount()
    """Steps computed, as far as reported; those lost to a kill included."""
    recomputed: Amount = Amount()
    """Part of `spent` that a kill made worthless, as known when the run last stopped."""

    def __add__(self, other: Spending) -> Spending:
        return Spending(*map(operator.add, vars(self).values(), vars(other).values()))


def read_spending(connection: Connection, study_id: int) -> dict[int, Spending]:
    """By run id; a run without entries is missing.

    Sums are taken in Python: exact at any size, which a database's SUM is not.
    """
    entries = connection.execute(
        select(
            LedgerEntry.run_id,
            LedgerEntry.entry,
            LedgerEntry.steps,
            LedgerEntry.tokens,
            *(getattr(LedgerEntry, f"flops_{convention}") for convention in Convention),
        ).where(LedgerEntry.study_id == study_id)
    )
    found: dict[int, dict[str, Amount]] = defaultdict(lambda: defaultdict(Amount))
    for run_id, entry, *figures in entries:
        found[run_id][entry] += Amount(*figures)
    runs = connection.execute(
        select(
            Run.id,
            Run.steps_recomputed,
            Run.num_steps,
            Run.tokens_per_step,
            *(getattr(Run, f"planned_flops_{convention}") for convention in Convention),
        ).where(Run.study_id == study_id, Run.steps_recomputed > 0)
    )
    for run_id, steps, num_steps, tokens_per_step, *planned in runs:
        found[run_id]["recomputed"] = of_steps(steps, num_steps, tokens_per_step, planned)
    return {run_id: Spending(**amounts) for run_id, amounts in found.items()}


def of_steps(steps: int, num_steps: int, tokens_per_step: int, planned: list[int]) -> Amount:
    """What `steps` steps of a run cost whose `num_steps` cost `planned` (one a convention)."""
    return Amount(steps, steps * tokens_per_step, *(steps * (p // num_steps) for p in planned))
