"""Versions of our tables, kept apart from Optuna's in a version table of our own.

A new database is made whole from `studies.database.tables`. A change of these tables needs a new
file in `versions/`, which brings older databases up to date, and `HEAD` set to it; a test says so.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from sqlalchemy import Connection, Engine, inspect, text

from budgetsweep.errors import StudyError
from studies.database.connection import BEGIN_OPTION, WRITE, clear_errors, describe
from studies.database.tables import Base

if TYPE_CHECKING:
    from alembic.config import Config

HEAD = "0001"
"""The version that this program reads and writes."""

VERSION_TABLE = "bs_alembic_version"

_POSTGRES_LOCK = 0x62737765  # any fixed number: "bswe"


def current_version(connection: Connection) -> str | None:
    """Version of the tables in a database; None: it has none of ours."""
    if not inspect(connection).has_table(VERSION_TABLE):
        return None
    version: str | None = connection.scalar(text(f"SELECT version_num FROM {VERSION_TABLE}"))
    return version


def migrate(engine: Engine) -> None:
    """Bring the tables to `HEAD`, or create them; two processes at once do it one after the other.

    One transaction: a kill leaves the old version or the new one.

    Raises:
        StudyError: the tables were made by a newer version of this program.
    """
    where = describe(engine.url)
    with clear_errors(where):
        with engine.connect() as connection:
            if current_version(connection) == HEAD:
                return
        with engine.execution_options(**{BEGIN_OPTION: WRITE}).begin() as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(
                    text("SELECT pg_advisory_xact_lock(:key)"), {"key": _POSTGRES_LOCK}
                )
            version = current_version(connection)
            if version != HEAD:
                _upgrade(connection, version, where)


def _upgrade(connection: Connection, version: str | None, where: str) -> None:
    from alembic import command
    from alembic.script import ScriptDirectory

    config = alembic_config(connection)
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if version is not None and version not in known:
        raise StudyError(
            f"{where} was written by a newer budgetsweep (schema {version}, this one knows "
            f"{HEAD}); update with pip install --upgrade budgetsweep"
        )
    with _quiet():
        if version is None:
            Base.metadata.create_all(connection)
            command.stamp(config, "head")
        else:
            command.upgrade(config, "head")


def alembic_config(connection: Connection) -> Config:
    """Alembic's configuration for our scripts, found inside the installed package."""
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", "studies:database/migrations")
    config.attributes["connection"] = connection
    return config


@contextmanager
def _quiet() -> Iterator[None]:
    """Alembic tells each step at level INFO, which an application's log need not show."""
    logger = logging.getLogger("alembic.runtime.migration")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)
