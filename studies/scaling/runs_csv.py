"""Tables of finished runs that anybody wrote: CSV, plain or gzipped, to data points. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from budgetsweep.config import did_you_mean
from budgetsweep.errors import DataError
from studies.csv_files import csv_rows, number, read_text
from studies.scaling.fit_data import FLOPS_PER_PARAM_TOKEN, FitPoint

ALIASES = {
    "n_params": ("n_params", "params", "parameters", "model_size", "n"),
    "tokens": ("tokens", "train_tokens", "n_tokens", "d"),
    "train_flops": ("train_flops", "flops", "compute", "c"),
    "val_loss_nats": ("val_loss_nats", "val_loss", "eval_loss", "loss_nats", "loss"),
    "max_lr": ("max_lr", "peak_lr", "lr", "learning_rate"),
    "batch_tokens": ("batch_tokens", "tokens_per_step"),
    "batch_size": ("batch_size",),
    "seq_len": ("seq_len", "sequence_length"),
    "stderr_nats": ("stderr_nats", "loss_stderr"),
    "group": ("group", "dataset", "data"),
}
"""Names of columns, capitals or not; the first found counts."""
EXPECTED = (
    "expected columns n_params, tokens (or train_flops in place of one of them: C = 6·N·D) and "
    "val_loss_nats; where known max_lr, batch_tokens, group"
)
SAME_FLOPS = 0.5
"""FLOPs that a table gives beside N and D may differ from 6·N·D by this share without a note."""


@dataclass(frozen=True)
class RunsTable:
    """The usable runs of a table, and what was done with the others."""

    name: str
    points: tuple[FitPoint, ...]
    flops: tuple[float, ...]
    """Of each point: as the table says, else 6 · N · D."""
    lines: tuple[int, ...]
    """Where each stands in the file."""
    notes: tuple[str, ...]
    """Sentences on rows passed over and columns filled."""

    @property
    def groups(self) -> list[str]:
        """Names of data sets or studies in the table."""
        return sorted({point.group for point in self.points})

    def only(self, group: str) -> RunsTable:
        """The runs of one group.

        Raises:
            DataError: there is no such group.
        """
        kept = [i for i, point in enumerate(self.points) if point.group == group]
        if not kept:
            known = [one for one in self.groups if one]
            hint = did_you_mean(group, known) if known else "; the table has no column group"
            raise DataError(f"{self.name}: no runs of group {group!r}{hint}")
        return replace(
            self,
            points=tuple(self.points[i] for i in kept),
            flops=tuple(self.flops[i] for i in kept),
            lines=tuple(self.lines[i] for i in kept),
        )


def read_runs(path: Path) -> RunsTable:
    """Read a table of finished runs.

    Where one of N, D and C is missing it is filled by C = 6 · N · D. A row whose loss is empty or
    not finite is of a run that did not finish: passed over, as are rows that repeat another one
    in every column; `notes` count them.

    Raises:
        DataError: no such file, no such columns, no usable row, or a row (named by its line and
            column) with something else than a number above 0.
    """
    wanted = "a CSV file of finished runs"
    heads, rows = csv_rows(path, read_text(path, wanted=wanted, expected=EXPECTED))
    columns = _columns(path, heads)
    found: dict[tuple[FitPoint, float], int] = {}
    unfinished = repeated = filled = unlike = 0
    for line, cells in rows:
        row = _Row(f"{path}, line {line}", columns, cells)
        if row.is_empty:
            continue
        loss = row.number("val_loss_nats", finite=False)
        if loss is None or not math.isfinite(loss):
            unfinished += 1
            continue
        n_params, tokens, flops, was_filled = row.size()
        filled += was_filled
        unlike += abs(flops / (FLOPS_PER_PARAM_TOKEN * n_params * tokens) - 1) > SAME_FLOPS
        key = row.point(n_params, tokens, loss), flops
        repeated += key in found
        found.setdefault(key, line)
    if not found:
        raise DataError(f"{path}: no finished run in it; {EXPECTED}")
    notes = {
        f"{unfinished} rows passed over: their loss is empty or not finite": unfinished,
        f"{repeated} rows passed over: they repeat another one": repeated,
        f"in {filled} rows one of N, D and C was filled by C = 6·N·D": filled,
        f"in {unlike} rows the FLOPs differ from 6·N·D by more than {SAME_FLOPS:.0%}: another "
        "convention; the fit uses N and D": unlike,
    }
    points, all_flops = zip(*found, strict=True)
    said = tuple(note for note, count in notes.items() if count)
    return RunsTable(str(path), points, all_flops, tuple(found.values()), said)


def _columns(path: Path, heads: Sequence[str]) -> dict[str, str]:
    """The file's name of each column that it has."""
    twice = sorted({head for head in heads if heads.count(head) > 1})
    if twice:
        raise DataError(f"{path}, line 1: column {twice[0]!r} stands there twice")
    by_lower = {head.lower(): head for head in heads}
    columns = {
        name: by_lower[alias]
        for name, aliases in ALIASES.items()
        for alias in reversed(aliases)
        if alias in by_lower
    }
    if "val_loss_nats" not in columns:
        near = did_you_mean("val_loss_nats", heads) if heads else ""
        raise DataError(f"{path}: no column val_loss_nats{near}; {EXPECTED}")
    if sum(name in columns for name in ("n_params", "tokens", "train_flops")) < 2:
        raise DataError(f"{path}: fewer than two of n_params, tokens and train_flops; {EXPECTED}")
    return columns


@dataclass(frozen=True)
class _Row:
    """A line of the table."""

    where: str
    columns: Mapping[str, str]
    """The file's names by ours."""
    cells: Mapping[str, str | None]

    def text(self, name: str) -> str:
        """What stands in a column; empty where the table has none."""
        return (self.cells[self.columns[name]] or "").strip() if name in self.columns else ""

    @property
    def is_empty(self) -> bool:
        """Whether no column that is known has anything."""
        return not any(self.text(name) for name in self.columns)

    def number(self, name: str, *, finite: bool = True) -> float | None:
        """A number; None: the table has no such column or the cell is empty."""
        value = number(self.text(name), self.columns.get(name, name), self.where)
        if value is not None and finite and not math.isfinite(value):
            raise self.wrong(name, self.text(name), "a finite number")
        return value

    def positive(self, name: str) -> float | None:
        """A number above 0, or None."""
        value = self.number(name)
        if value is not None and value <= 0:
            raise self.wrong(name, f"{value:g}", "a number above 0")
        return value

    def wrong(self, name: str, value: str, expected: str) -> DataError:
        """The complaint about a cell."""
        return DataError(f"{self.where}: {self.columns[name]} = {value}; expected {expected}")

    def size(self) -> tuple[float, float, float, bool]:
        """N, D, C, and whether one of them was filled."""
        names = ("n_params", "tokens", "train_flops")
        values = {name: self.positive(name) for name in names}
        missing = [name for name, value in values.items() if value is None]
        if len(missing) > 1:
            empty = self.columns.get(missing[0], missing[0])
            raise DataError(f"{self.where}: {empty} is empty; two of N, D and C are needed")
        n_params, tokens, flops = (value or 0.0 for value in values.values())
        if not flops:
            flops = FLOPS_PER_PARAM_TOKEN * n_params * tokens
        elif not n_params:
            n_params = flops / (FLOPS_PER_PARAM_TOKEN * tokens)
        elif not tokens:
            tokens = flops / (FLOPS_PER_PARAM_TOKEN * n_params)
        return n_params, tokens, flops, bool(missing)

    def point(self, n_params: float, tokens: float, loss: float) -> FitPoint:
        """The data point."""
        if loss <= 0:
            raise self.wrong("val_loss_nats", f"{loss:g}", "nats above 0")
        batch = self.positive("batch_tokens")
        if batch is None:
            rows, length = self.positive("batch_size"), self.positive("seq_len")
            batch = rows * length if rows is not None and length is not None else None
        error = self.number("stderr_nats") or 0.0
        if error < 0:
            raise self.wrong("stderr_nats", f"{error:g}", "0 or above")
        group, max_lr = self.text("group"), self.positive("max_lr")
        return FitPoint(n_params, tokens, loss, max_lr, batch, error, group)
