"""The FLOP ledger of a study: exact sums of its entries."""

from __future__ import annotations

from dataclasses import dataclass, replace

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
        return Amount(
            self.steps + other.steps,
            self.tokens + other.tokens,
            self.nanogpt + other.nanogpt,
            self.matmul + other.matmul,
            self.mac + other.mac,
        )


@dataclass(frozen=True)
class LedgerTotals:
    """What a study planned and spent so far."""

    planned: Amount = Amount()
    """All steps of all admitted runs."""
    spent: Amount = Amount()
    """Steps computed, as far as reported; those lost to a kill included."""
    redone: Amount = Amount()
    """Part of `spent` that a kill made worthless, as known when each run last stopped."""
    last_entry: int = 0
    """Id of the last entry counted."""


def read_totals(
    connection: Connection, study_id: int, known: LedgerTotals | None = None
) -> LedgerTotals:
    """Totals of a study; entries never change, so those that `known` counts are not read again."""
    totals = known or LedgerTotals()
    entries = connection.execute(
        select(
            LedgerEntry.id,
            LedgerEntry.entry,
            LedgerEntry.steps,
            LedgerEntry.tokens,
            LedgerEntry.flops_nanogpt,
            LedgerEntry.flops_matmul,
            LedgerEntry.flops_mac,
        )
        .where(LedgerEntry.study_id == study_id, LedgerEntry.id > totals.last_entry)
        .order_by(LedgerEntry.id)
    )
    sums = {"planned": totals.planned, "spent": totals.spent}
    last = totals.last_entry
    for last, entry, *figures in entries:  # noqa: B007 - the last one is used below
        sums[entry] += Amount(*figures)
    return replace(totals, **sums, redone=_redone(connection, study_id), last_entry=last)


def _redone(connection: Connection, study_id: int) -> Amount:
    runs = connection.execute(
        select(
            Run.steps_redone,
            Run.num_steps,
            Run.tokens_per_step,
            Run.planned_flops_nanogpt,
            Run.planned_flops_matmul,
            Run.planned_flops_mac,
        ).where(Run.study_id == study_id, Run.steps_redone > 0)
    )
    total = Amount()
    for steps, num_steps, tokens_per_step, *planned in runs:
        total += of_steps(steps, num_steps, tokens_per_step, planned)
    return total


def of_steps(steps: int, num_steps: int, tokens_per_step: int, planned: list[int]) -> Amount:
    """What `steps` steps of a run cost whose `num_steps` cost `planned` (one a convention)."""
    return Amount(steps, steps * tokens_per_step, *(steps * (p // num_steps) for p in planned))
