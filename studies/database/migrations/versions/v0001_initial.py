"""The first schema: studies, runs, points, rejections, the ledger, fits and predictions.

The schema is spelt out, not taken from `studies.database.tables`: this version stays what it was.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

EXACT_INT = sa.String(length=40)
"""A whole number of any size as decimal text."""


def upgrade() -> None:
    """Create our tables."""
    op.create_table(
        "bs_study",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("created_utc", sa.DateTime(), nullable=False),
        sa.Column("budget_flops", EXACT_INT, nullable=False),
        sa.Column("convention", sa.String(length=40), nullable=False),
        sa.Column("sampler", sa.String(length=20), nullable=False),
        sa.Column("seed", sa.BigInteger(), nullable=False),
        sa.Column("space", sa.JSON(), nullable=False),
        sa.Column("other_settings", sa.JSON(), nullable=False),
        sa.Column("data_description", sa.Text(), nullable=True),
        sa.Column("data_checksum", sa.String(length=64), nullable=True),
        sa.Column("val_checksum", sa.String(length=64), nullable=True),
        sa.Column("val_tokens", sa.BigInteger(), nullable=True),
        sa.Column("bytes_per_token", sa.Float(), nullable=True),
        sa.Column("lease_owner", sa.String(length=200), nullable=True),
        sa.Column("lease_until_utc", sa.DateTime(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("name"),
    )
    op.create_table(
        "bs_rejection",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("study_id", sa.Integer(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("created_utc", sa.DateTime(), nullable=False),
        sa.Column("reason", sa.String(length=40), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("excess", sa.Float(), nullable=True),
        sa.Column("params", sa.JSON(), nullable=False),
        sa.Column("n_params", EXACT_INT, nullable=True),
        sa.Column("tokens", EXACT_INT, nullable=True),
        sa.Column("charge_flops", EXACT_INT, nullable=True),
        sa.ForeignKeyConstraint(["study_id"], ["bs_study.id"]),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("study_id", "number"),
    )
    op.create_index("ix_bs_rejection_reason", "bs_rejection", ["study_id", "reason"])
    op.create_table(
        "bs_run",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("study_id", sa.Integer(), nullable=False),
        sa.Column("kind", sa.String(length=40), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("parent_run_id", sa.Integer(), nullable=True),
        sa.Column("scale", sa.Float(), nullable=True),
        sa.Column("status", sa.String(length=40), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("params", sa.JSON(), nullable=False),
        sa.Column("config", sa.JSON(), nullable=False),
        sa.Column("config_hash", sa.String(length=64), nullable=False),
        sa.Column("seed", sa.BigInteger(), nullable=False),
        sa.Column("git_commit", sa.String(length=80), nullable=True),
        sa.Column("versions", sa.JSON(), nullable=False),
        sa.Column("device_name", sa.String(length=200), nullable=True),
        sa.Column("precision", sa.String(length=20), nullable=True),
        sa.Column("compiled", sa.Boolean(), nullable=True),
        sa.Column("data_checksum", sa.String(length=64), nullable=True),
        sa.Column("val_checksum", sa.String(length=64), nullable=True),
        sa.Column("budget_flops", EXACT_INT, nullable=False),
        sa.Column("n_params", EXACT_INT, nullable=False),
        sa.Column("num_steps", sa.BigInteger(), nullable=False),
        sa.Column("tokens_per_step", EXACT_INT, nullable=False),
        sa.Column("planned_tokens", EXACT_INT, nullable=False),
        sa.Column("planned_flops_nanogpt", EXACT_INT, nullable=False),
        sa.Column("planned_flops_matmul", EXACT_INT, nullable=False),
        sa.Column("planned_flops_mac", EXACT_INT, nullable=False),
        sa.Column("epochs", sa.Float(), nullable=True),
        sa.Column("estimated_memory_bytes", EXACT_INT, nullable=True),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("step", sa.BigInteger(), nullable=False),
        sa.Column("steps_executed", sa.BigInteger(), nullable=False),
        sa.Column("steps_recomputed", sa.BigInteger(), nullable=False),
        sa.Column("val_loss_nats", sa.Float(), nullable=True),
        sa.Column("val_ppl", sa.Float(), nullable=True),
        sa.Column("val_bits_per_byte", sa.Float(), nullable=True),
        sa.Column("val_loss_stderr_nats", sa.Float(), nullable=True),
        sa.Column("val_tokens", sa.BigInteger(), nullable=True),
        sa.Column("train_loss_nats", sa.Float(), nullable=True),
        sa.Column("train_seconds", sa.Float(), nullable=True),
        sa.Column("eval_seconds", sa.Float(), nullable=True),
        sa.Column("peak_memory_bytes", EXACT_INT, nullable=True),
        sa.Column("output_dir", sa.Text(), nullable=True),
        sa.Column("created_utc", sa.DateTime(), nullable=False),
        sa.Column("started_utc", sa.DateTime(), nullable=True),
        sa.Column("finished_utc", sa.DateTime(), nullable=True),
        sa.ForeignKeyConstraint(["parent_run_id"], ["bs_run.id"]),
        sa.ForeignKeyConstraint(["study_id"], ["bs_study.id"]),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("study_id", "kind", "number"),
    )
    op.create_index(
        "ix_bs_run_best",
        "bs_run",
        ["study_id", "kind", "status", "val_loss_nats", "number"],
    )
    op.create_index("ix_bs_run_config_hash", "bs_run", ["study_id", "config_hash"])
    op.create_index("ix_bs_run_recomputed", "bs_run", ["study_id", "steps_recomputed"])
    op.create_index("ix_bs_run_study_status", "bs_run", ["study_id", "status"])
    op.create_table(
        "bs_ledger",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("study_id", sa.Integer(), nullable=False),
        sa.Column("run_id", sa.Integer(), nullable=False),
        sa.Column("created_utc", sa.DateTime(), nullable=False),
        sa.Column("entry", sa.String(length=10), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("steps", sa.BigInteger(), nullable=False),
        sa.Column("tokens", EXACT_INT, nullable=False),
        sa.Column("flops_nanogpt", EXACT_INT, nullable=False),
        sa.Column("flops_matmul", EXACT_INT, nullable=False),
        sa.Column("flops_mac", EXACT_INT, nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["bs_run.id"]),
        sa.ForeignKeyConstraint(["study_id"], ["bs_study.id"]),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_bs_ledger_study", "bs_ledger", ["study_id", "id"])
    op.create_table(
        "bs_point",
        sa.Column("run_id", sa.Integer(), nullable=False),
        sa.Column("step", sa.BigInteger(), nullable=False),
        sa.Column("tokens", EXACT_INT, nullable=False),
        sa.Column("flops", EXACT_INT, nullable=False),
        sa.Column("seconds", sa.Float(), nullable=False),
        sa.Column("train_loss_nats", sa.Float(), nullable=True),
        sa.Column("val_loss_nats", sa.Float(), nullable=True),
        sa.Column("lr", sa.Float(), nullable=True),
        sa.Column("grad_norm", sa.Float(), nullable=True),
        sa.ForeignKeyConstraint(["run_id"], ["bs_run.id"]),
        sa.PrimaryKeyConstraint("run_id", "step"),
    )
    op.create_table(
        "bs_fit",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("study_id", sa.Integer(), nullable=False),
        sa.Column("created_utc", sa.DateTime(), nullable=False),
        sa.Column("scale", sa.Float(), nullable=False),
        sa.Column("refusal", sa.Text(), nullable=True),
        sa.Column("record", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(["study_id"], ["bs_study.id"]),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_bs_fit_study", "bs_fit", ["study_id", "id"])
    op.create_table(
        "bs_prediction",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("study_id", sa.Integer(), nullable=False),
        sa.Column("run_id", sa.Integer(), nullable=False),
        sa.Column("fit_id", sa.Integer(), nullable=False),
        sa.Column("created_utc", sa.DateTime(), nullable=False),
        sa.Column("selected_by", sa.String(length=20), nullable=False),
        sa.Column("val_loss_nats", sa.Float(), nullable=False),
        sa.Column("low_nats", sa.Float(), nullable=False),
        sa.Column("high_nats", sa.Float(), nullable=False),
        sa.Column("level", sa.Float(), nullable=False),
        sa.Column("extrapolation", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(["fit_id"], ["bs_fit.id"]),
        sa.ForeignKeyConstraint(["run_id"], ["bs_run.id"]),
        sa.ForeignKeyConstraint(["study_id"], ["bs_study.id"]),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("run_id"),
    )
