"""Alembic's entry point: runs the versions on the connection that `migrate` opened."""

from __future__ import annotations

from alembic import context

from studies.database.migrations import VERSION_TABLE

context.configure(connection=context.config.attributes["connection"], version_table=VERSION_TABLE)
with context.begin_transaction():
    context.run_migrations()
