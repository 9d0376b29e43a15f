"""Fits of a scaling law, and predictions made before their runs."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create both tables."""
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
    op.create_index("ix_bs_fit_study", "bs_fit", ["study_id", "id"], unique=False)
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


def downgrade() -> None:
    """Remove them."""
    op.drop_table("bs_prediction")
    op.drop_table("bs_fit")
