"""The tables of a study database, beside Optuna's own in the same database.

One row a study, a run, a point of a curve, a rejected proposal, a ledger entry. Missing is NULL
with a status, never a plausible number; units are in the names; times are UTC. `reports` reads
these tables, only `studies.database.store` writes them. A change of the schema is a numbered
migration under `studies/database/migrations`.
"""

from __future__ import annotations

import datetime as dt
from enum import StrEnum
from typing import Any, ClassVar

from sqlalchemy import (
    JSON,
    BigInteger,
    DateTime,
    Dialect,
    Enum,
    Float,
    ForeignKey,
    Index,
    Integer,
    String,
    Text,
    TypeDecorator,
    UniqueConstraint,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from budgetsweep.config import parse
from model.flops import Convention
from studies.database.run_kind import RunKind
from studies.database.study_settings import StudySettings
from trainer.events import RunStatus


class ExactInt(TypeDecorator[int]):
    """A whole number of any size, stored as decimal text.

    FLOP counts pass 2**63 at budgets people really have; a FLOAT column would round them.
    """

    impl = String(40)
    cache_ok = True

    def process_bind_param(self, value: int | None, _dialect: Dialect) -> str | None:
        """Decimal text for the database."""
        return None if value is None else str(int(value))

    def process_result_value(self, value: str | None, _dialect: Dialect) -> int | None:
        """The whole number again."""
        return None if value is None else int(value)


class UtcDateTime(TypeDecorator[dt.datetime]):
    """A time in UTC; stored without zone, returned with it."""

    impl = DateTime
    cache_ok = True

    def process_bind_param(
        self, value: dt.datetime | None, _dialect: Dialect
    ) -> dt.datetime | None:
        """UTC without zone, for databases that have none."""
        return None if value is None else value.astimezone(dt.UTC).replace(tzinfo=None)

    def process_result_value(
        self, value: dt.datetime | None, _dialect: Dialect
    ) -> dt.datetime | None:
        """The time with its zone."""
        return None if value is None else value.replace(tzinfo=dt.UTC)


class Base(DeclarativeBase):
    """Root of our tables; every name begins with `bs_`. An enumeration is stored as its words."""

    type_annotation_map: ClassVar = {
        StrEnum: Enum(
            StrEnum,
            native_enum=False,
            length=40,
            values_callable=lambda kind: [member.value for member in kind],
        ),
    }


class Study(Base):
    """One search: its settings, data and lease."""

    __tablename__ = "bs_study"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(200), unique=True)
    """Also the name of the Optuna study in the same database."""
    created_utc: Mapped[dt.datetime] = mapped_column(UtcDateTime)
    budget_flops: Mapped[int] = mapped_column(ExactInt)
    """Training FLOPs that one trial may spend, in `convention`."""
    convention: Mapped[Convention]
    sampler: Mapped[str] = mapped_column(String(20))
    seed: Mapped[int] = mapped_column(BigInteger)
    space: Mapped[dict[str, Any]] = mapped_column(JSON)
    """The search space as `SearchSpace.to_dict()`."""
    other_settings: Mapped[dict[str, Any]] = mapped_column(JSON)
    """What else `settings` holds."""
    data_description: Mapped[str | None] = mapped_column(Text)
    data_checksum: Mapped[str | None] = mapped_column(String(64))
    val_checksum: Mapped[str | None] = mapped_column(String(64))
    """SHA-256 of the study's fixed validation tokens."""
    val_tokens: Mapped[int | None] = mapped_column(BigInteger)
    bytes_per_token: Mapped[float | None] = mapped_column(Float)
    """UTF-8 bytes per token of the validation split, for bits per byte."""
    lease_owner: Mapped[str | None] = mapped_column(String(200))
    """Dispatcher that works on the study now (`studies.database.leases.Owner`)."""
    lease_until_utc: Mapped[dt.datetime | None] = mapped_column(UtcDateTime)

    @property
    def settings(self) -> StudySettings:
        """What decides the study's outcome.

        Raises:
            ConfigError: a newer version wrote what this one does not know.
        """
        columns = {name: getattr(self, name) for name in SETTINGS_COLUMNS}
        where = f"settings of study {self.name!r}"
        return parse(StudySettings, {**self.other_settings, **columns}, where)


SETTINGS_COLUMNS = ("budget_flops", "convention", "sampler", "seed", "space")
"""Fields of `StudySettings` that have columns of their own."""


def settings_columns(settings: StudySettings) -> dict[str, Any]:
    """The columns of a study's row that hold its settings."""
    data = settings.model_dump(mode="json")
    columns = {name: data.pop(name) for name in SETTINGS_COLUMNS}
    return {**columns, "other_settings": data}


class Run(Base):
    """One training run: a trial of a search, or what was made of one at a larger budget."""

    __tablename__ = "bs_run"
    __table_args__ = (
        UniqueConstraint("study_id", "kind", "number"),
        Index("ix_bs_run_study_status", "study_id", "status"),
        Index("ix_bs_run_best", "study_id", "kind", "status", "val_loss_nats", "number"),
        Index("ix_bs_run_config_hash", "study_id", "config_hash"),
        Index("ix_bs_run_recomputed", "study_id", "steps_recomputed"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    study_id: Mapped[int] = mapped_column(ForeignKey("bs_study.id"))
    kind: Mapped[RunKind]
    number: Mapped[int] = mapped_column(Integer)
    """Trial: the number of its Optuna trial. Other kinds: 0, 1, … in a study."""
    parent_run_id: Mapped[int | None] = mapped_column(ForeignKey("bs_run.id"))
    """The trial whose shape a finalist or promotion trains."""
    scale: Mapped[float | None] = mapped_column(Float)
    """Its budget as a multiple of the study's; of a trial only where that has several levels."""
    status: Mapped[RunStatus]
    reason: Mapped[str | None] = mapped_column(Text)
    """Why it failed or was pruned, in one line; of a replayed run, which one it stands for."""
    params: Mapped[dict[str, Any]] = mapped_column(JSON)
    """What the sampler proposed, by name; of a later kind what the rule of promotion changed."""
    config: Mapped[dict[str, Any]] = mapped_column(JSON)
    """The full run configuration, `RunConfig.to_dict()`; runs again unchanged."""
    config_hash: Mapped[str] = mapped_column(String(64))
    """Equal for configurations that train the same (output folder and seed left out)."""
    seed: Mapped[int] = mapped_column(BigInteger)
    git_commit: Mapped[str | None] = mapped_column(String(80))
    """`studies.database.provenance.git_commit`: the hash, with `-dirty` where files had changed."""
    versions: Mapped[dict[str, str]] = mapped_column(JSON)
    """python, torch, optuna, numpy, budgetsweep."""
    device_name: Mapped[str | None] = mapped_column(String(200))
    precision: Mapped[str | None] = mapped_column(String(20))
    """`bf16` or `fp32`."""
    compiled: Mapped[bool | None]
    data_checksum: Mapped[str | None] = mapped_column(String(64))
    val_checksum: Mapped[str | None] = mapped_column(String(64))

    budget_flops: Mapped[int] = mapped_column(ExactInt)
    n_params: Mapped[int] = mapped_column(ExactInt)
    num_steps: Mapped[int] = mapped_column(BigInteger)
    tokens_per_step: Mapped[int] = mapped_column(ExactInt)
    planned_tokens: Mapped[int] = mapped_column(ExactInt)
    planned_flops_nanogpt: Mapped[int] = mapped_column(ExactInt)
    planned_flops_matmul: Mapped[int] = mapped_column(ExactInt)
    planned_flops_mac: Mapped[int] = mapped_column(ExactInt)
    epochs: Mapped[float | None] = mapped_column(Float)
    """Passes over the training data."""
    estimated_memory_bytes: Mapped[int | None] = mapped_column(ExactInt)

    attempts: Mapped[int] = mapped_column(Integer, default=0)
    """How often a worker took the run up."""
    step: Mapped[int] = mapped_column(BigInteger, default=0)
    """Optimiser steps in the model's history; of a running run, those in its last checkpoint."""
    steps_executed: Mapped[int] = mapped_column(BigInteger, default=0)
    """Optimiser steps computed in all attempts, those lost to a kill included."""
    steps_recomputed: Mapped[int] = mapped_column(BigInteger, default=0)
    """Of these, the steps lost to a kill (not in the history), as known when it last stopped."""
    val_loss_nats: Mapped[float | None] = mapped_column(Float)
    val_ppl: Mapped[float | None] = mapped_column(Float)
    val_bits_per_byte: Mapped[float | None] = mapped_column(Float)
    val_loss_stderr_nats: Mapped[float | None] = mapped_column(Float)
    """Sampling error of the validation loss (spread between windows)."""
    val_tokens: Mapped[int | None] = mapped_column(BigInteger)
    train_loss_nats: Mapped[float | None] = mapped_column(Float)
    train_seconds: Mapped[float | None] = mapped_column(Float)
    eval_seconds: Mapped[float | None] = mapped_column(Float)
    peak_memory_bytes: Mapped[int | None] = mapped_column(ExactInt)
    output_dir: Mapped[str | None] = mapped_column(Text)
    created_utc: Mapped[dt.datetime] = mapped_column(UtcDateTime)
    started_utc: Mapped[dt.datetime | None] = mapped_column(UtcDateTime)
    finished_utc: Mapped[dt.datetime | None] = mapped_column(UtcDateTime)

    @property
    def has_whole_budget(self) -> bool:
        """Whether a trial had the study's budget, not that of another budget level."""
        return self.scale is None or self.scale == 1.0

    def planned_flops(self, convention: Convention) -> int:
        """Planned training FLOPs in one of the conventions of `model.flops`."""
        flops: int = getattr(self, f"planned_flops_{convention}")
        return flops


class PointRow(Base):
    """One point of a run's learning curves (`trainer.events.Point`)."""

    __tablename__ = "bs_point"

    run_id: Mapped[int] = mapped_column(ForeignKey("bs_run.id"), primary_key=True)
    step: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    tokens: Mapped[int] = mapped_column(ExactInt)
    flops: Mapped[int] = mapped_column(ExactInt)
    """In the study's convention."""
    seconds: Mapped[float] = mapped_column(Float)
    train_loss_nats: Mapped[float | None] = mapped_column(Float)
    val_loss_nats: Mapped[float | None] = mapped_column(Float)
    lr: Mapped[float | None] = mapped_column(Float)
    grad_norm: Mapped[float | None] = mapped_column(Float)


class Rejection(Base):
    """One proposal that the constraint refused; it cost no trial."""

    __tablename__ = "bs_rejection"
    __table_args__ = (
        UniqueConstraint("study_id", "number"),
        Index("ix_bs_rejection_reason", "study_id", "reason"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    study_id: Mapped[int] = mapped_column(ForeignKey("bs_study.id"))
    number: Mapped[int] = mapped_column(Integer)
    """Number of the proposal's Optuna trial (shared with runs: one sequence of proposals)."""
    created_utc: Mapped[dt.datetime] = mapped_column(UtcDateTime)
    reason: Mapped[str] = mapped_column(String(40))
    """A `budgetsweep.errors.Reason`; one of a newer version is shown as it is."""
    detail: Mapped[str] = mapped_column(Text)
    """One line with the figures."""
    excess: Mapped[float | None] = mapped_column(Float)
    """By what factor the limit is passed (1.5: half as much again as allowed), where it is one."""
    params: Mapped[dict[str, Any]] = mapped_column(JSON)
    n_params: Mapped[int | None] = mapped_column(ExactInt)
    tokens: Mapped[int | None] = mapped_column(ExactInt)
    """Training tokens asked for, where the shape is valid."""
    charge_flops: Mapped[int | None] = mapped_column(ExactInt)
    """What it would have cost, where that is known."""


class LedgerEntry(Base):
    """Training FLOPs, entry by entry; never changed once written.

    `planned`: entered when a run is admitted (steps = all its steps). `spent`: entered when a
    worker reports or when a dead worker's meter is read (steps = optimiser steps computed since
    the last entry, recomputed ones included). Sums over a study are exact whole numbers.
    """

    __tablename__ = "bs_ledger"
    __table_args__ = (Index("ix_bs_ledger_study", "study_id", "id"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    study_id: Mapped[int] = mapped_column(ForeignKey("bs_study.id"))
    run_id: Mapped[int] = mapped_column(ForeignKey("bs_run.id"))
    created_utc: Mapped[dt.datetime] = mapped_column(UtcDateTime)
    entry: Mapped[str] = mapped_column(String(10))
    """`planned` or `spent`."""
    attempt: Mapped[int] = mapped_column(Integer)
    steps: Mapped[int] = mapped_column(BigInteger)
    tokens: Mapped[int] = mapped_column(ExactInt)
    flops_nanogpt: Mapped[int] = mapped_column(ExactInt)
    flops_matmul: Mapped[int] = mapped_column(ExactInt)
    flops_mac: Mapped[int] = mapped_column(ExactInt)


class Fit(Base):
    """A scaling law fitted to the runs of a study, and what follows from it; never changed."""

    __tablename__ = "bs_fit"
    __table_args__ = (Index("ix_bs_fit_study", "study_id", "id"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    study_id: Mapped[int] = mapped_column(ForeignKey("bs_study.id"))
    created_utc: Mapped[dt.datetime] = mapped_column(UtcDateTime)
    scale: Mapped[float] = mapped_column(Float)
    """Budget that the losses are predicted for, as a multiple of the study's."""
    refusal: Mapped[str | None] = mapped_column(Text)
    """Why no law could be fitted, in one line; NULL: one was."""
    record: Mapped[dict[str, Any]] = mapped_column(JSON)
    """`studies.scaling.prediction.StudyFit.to_dict()`: law, points used and left out,
    candidates."""


class Prediction(Base):
    """The loss of a finalist or promotion, predicted before it trained; never changed."""

    __tablename__ = "bs_prediction"

    id: Mapped[int] = mapped_column(primary_key=True)
    study_id: Mapped[int] = mapped_column(ForeignKey("bs_study.id"))
    run_id: Mapped[int] = mapped_column(ForeignKey("bs_run.id"), unique=True)
    """The finalist or promotion."""
    fit_id: Mapped[int] = mapped_column(ForeignKey("bs_fit.id"))
    created_utc: Mapped[dt.datetime] = mapped_column(UtcDateTime)
    selected_by: Mapped[str] = mapped_column(String(20))
    """Why this trial was promoted: `measured`, `predicted` or `trial` (named by the user)."""
    val_loss_nats: Mapped[float] = mapped_column(Float)
    low_nats: Mapped[float] = mapped_column(Float)
    high_nats: Mapped[float] = mapped_column(Float)
    level: Mapped[float] = mapped_column(Float)
    """Chance that the loss lies between the two, as the fit sees it."""
    extrapolation: Mapped[float] = mapped_column(Float)
    """FLOPs of the promotion over those of the largest run that was fitted."""
