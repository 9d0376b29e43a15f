"""Tables of finished runs that anybody wrote: CSV, plain or gzipped, to observations. No torch."""

from __future__ import annotations

import csv
import gzip
import io
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from budgetsweep.config import did_you_mean
from budgetsweep.errors import DataError
from studies.scaling.fit_data import FLOPS_PER_PARAM_TOKEN, Observation

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
LARGEST_BYTES = 1 << 28
SAME_FLOPS = 0.5
"""FLOPs that a table gives beside N and D may differ from 6·N·D by this share before it is told."""


@dataclass(frozen=True)
class RunsTable:
    """The usable runs of a table, and what was done with the others."""

    name: str
    observations: tuple[Observation, ...]
    flops: tuple[float, ...]
    """Of each observation: as the table says, else 6 · N · D."""
    lines: tuple[int, ...]
    """Where each stands in the file."""
    notes: tuple[str, ...]
    """Sentences on rows passed over and columns filled."""

    @property
    def groups(self) -> list[str]:
        """Names of data sets or studies in the table."""
        return sorted({one.group for one in self.observations})

    def only(self, group: str) -> RunsTable:
        """The runs of one group.

        Raises:
            DataError: there is no such group.
        """
        if group not in self.groups:
            known = [one for one in self.groups if one]
            hint = did_you_mean(group, known) if known else "; the table has no column group"
            raise DataError(f"{self.name}: no runs of group {group!r}{hint}")
        kept = [i for i, one in enumerate(self.observations) if one.group == group]
        return RunsTable(
            self.name,
            tuple(self.observations[i] for i in kept),
            tuple(self.flops[i] for i in kept),
            tuple(self.lines[i] for i in kept),
            self.notes,
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
    text = _text(path)
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    columns = _columns(path, reader)
    found: dict[tuple[float | str | None, ...], tuple[Observation, float, int]] = {}
    unfinished = repeated = filled = unlike = 0
    try:
        for row in reader:
            where = f"{path}, line {reader.line_num}"
            if None in row:
                raise DataError(f"{where}: more cells than columns")
            cells = {name: (row[head] or "").strip() for name, head in columns.items()}
            if not any(cells.values()):
                continue
            loss = _number(cells["val_loss_nats"], columns["val_loss_nats"], where, finite=False)
            if loss is None or not math.isfinite(loss):
                unfinished += 1
                continue
            n_params, tokens, flops, was_filled = _size(cells, columns, where)
            filled += was_filled
            unlike += _is_unlike(flops, n_params, tokens)
            one = _observation(cells, columns, where, n_params, tokens, loss)
            key = (*(getattr(one, name) for name in one.__dataclass_fields__), flops)
            if key in found:
                repeated += 1
                continue
            found[key] = (one, flops, reader.line_num)
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.reader.line_num}: not CSV ({error})") from error
    if not found:
        raise DataError(f"{path}: no finished run in it; {EXPECTED}")
    notes = []
    if unfinished:
        notes.append(f"{unfinished} rows passed over: their loss is empty or not finite")
    if repeated:
        notes.append(f"{repeated} rows passed over: they repeat another one")
    if filled:
        notes.append(f"in {filled} rows one of N, D and C was filled by C = 6·N·D")
    if unlike:
        notes.append(
            f"in {unlike} rows the FLOPs differ from 6·N·D by more than {SAME_FLOPS:.0%}: another "
            "convention; the fit uses N and D"
        )
    observations, all_flops, lines = zip(*found.values(), strict=True)
    return RunsTable(str(path), observations, all_flops, lines, tuple(notes))


def _text(path: Path) -> str:
    try:
        raw = path.read_bytes()
        if raw[:2] == b"\x1f\x8b":
            with gzip.open(io.BytesIO(raw)) as file:
                raw = file.read(LARGEST_BYTES + 1)
        if len(raw) > LARGEST_BYTES:
            raise DataError(f"{path}: larger than {LARGEST_BYTES >> 20} MiB; not a table of runs")
        text = raw.decode("utf-8-sig")
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; expected a CSV file of finished runs") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: damaged gzip file ({error})") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text (byte {error.start})") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    if not text.strip():
        raise DataError(f"{path}: the file is empty; {EXPECTED}")
    return text


def _columns(path: Path, reader: csv.DictReader[str]) -> dict[str, str]:
    """The file's name of each column that it has."""
    try:
        heads = [name.strip() for name in reader.fieldnames or []]
    except csv.Error as error:
        raise DataError(f"{path}, line 1: not CSV ({error})") from error
    twice = sorted({head for head in heads if heads.count(head) > 1})
    if twice:
        raise DataError(f"{path}, line 1: column {twice[0]!r} stands there twice")
    reader.fieldnames = heads
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


def _size(
    cells: Mapping[str, str], columns: Mapping[str, str], where: str
) -> tuple[float, float, float, bool]:
    """N, D, C of a row, and whether one of them was filled."""
    names = ("n_params", "tokens", "train_flops")
    n_params, tokens, flops = (_positive(cells, columns, name, where) for name in names)
    if n_params is not None and tokens is not None:
        filled = flops is None
        return n_params, tokens, flops or FLOPS_PER_PARAM_TOKEN * n_params * tokens, filled
    if flops is None or (n_params is None and tokens is None):
        empty = next(
            columns.get(name, name)
            for name, value in zip(names, (n_params, tokens, flops), strict=True)
            if value is None
        )
        raise DataError(f"{where}: {empty} is empty; two of N, D and C are needed")
    if n_params is None:
        assert tokens is not None
        return flops / (FLOPS_PER_PARAM_TOKEN * tokens), tokens, flops, True
    return n_params, flops / (FLOPS_PER_PARAM_TOKEN * n_params), flops, True


def _is_unlike(flops: float, n_params: float, tokens: float) -> bool:
    return abs(flops / (FLOPS_PER_PARAM_TOKEN * n_params * tokens) - 1) > SAME_FLOPS


def _observation(
    cells: Mapping[str, str], columns: Mapping[str, str], where: str, n_params: float,
    tokens: float, loss: float,
) -> Observation:  # fmt: skip
    if loss <= 0:
        raise DataError(f"{where}: {columns['val_loss_nats']} = {loss:g}; expected nats above 0")
    batch = _positive(cells, columns, "batch_tokens", where)
    if batch is None:
        rows = _positive(cells, columns, "batch_size", where)
        length = _positive(cells, columns, "seq_len", where)
        batch = rows * length if rows is not None and length is not None else None
    error = 0.0
    if cells.get("stderr_nats"):
        told = _number(cells["stderr_nats"], columns["stderr_nats"], where)
        error = told or 0.0
        if error < 0:
            raise DataError(f"{where}: {columns['stderr_nats']} = {error:g}; expected 0 or above")
    max_lr = _positive(cells, columns, "max_lr", where)
    return Observation(n_params, tokens, loss, max_lr, batch, error, cells.get("group", ""))


def _positive(
    cells: Mapping[str, str], columns: Mapping[str, str], name: str, where: str
) -> float | None:
    """A number above 0; None: the table has no such column or the cell is empty."""
    value = _number(cells.get(name, ""), columns.get(name, name), where)
    if value is not None and value <= 0:
        raise DataError(f"{where}: {columns[name]} = {value:g}; expected a number above 0")
    return value


def _number(cell: str, column: str, where: str, *, finite: bool = True) -> float | None:
    if not cell:
        return None
    try:
        value = float(cell)
    except ValueError as error:
        shown = repr(cell) if len(repr(cell)) <= 40 else repr(cell)[:37] + "..."
        raise DataError(f"{where}: {column} = {shown}; expected a number") from error
    if finite and not math.isfinite(value):
        raise DataError(f"{where}: {column} = {cell}; expected a finite number")
    return value
