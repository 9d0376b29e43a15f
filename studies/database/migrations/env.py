"""Alembic's entry point: runs the versions on the connection that `migrate` opened."""

from __future__ import annotations

from typing import Any

from alembic import context

from studies.database.migrations import VERSION_TABLE
from studies.database.tables import Base


def _is_ours(name: str | None, kind: str, _parents: Any) -> bool:
    """Leave Optuna's tables in the same database alone."""
    return kind != "table" or (name or "").startswith("bs_")


context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    version_table=VERSION_TABLE,
    include_name=_is_ours,
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
