"""Cooldown branches: steps of a run's history that its trunk computed."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column; runs so far have computed all of their history themselves."""
    op.add_column(
        "bs_run",
        sa.Column("inherited_steps", sa.BigInteger(), nullable=False, server_default="0"),
    )


def downgrade() -> None:
    """Remove it."""
    op.drop_column("bs_run", "inherited_steps")
