"""Study databases to test on: SQLite always, PostgreSQL where a server is named.

BUDGETSWEEP_TEST_POSTGRES=postgresql+psycopg://user:password@host/database runs every test that
takes `database` there too, each in a schema of its own.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import create_engine, make_url, text

from studies.database import tables
from studies.database.store import Store
from tests.support.tiny_studies import new_study

POSTGRES = os.environ.get("BUDGETSWEEP_TEST_POSTGRES")


@pytest.fixture(params=["sqlite", *(["postgresql"] if POSTGRES else [])])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """URL of a place without a study database."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'runs.db'}"
        return
    schema = f"test_{uuid.uuid4().hex[:12]}"
    url = make_url(str(POSTGRES))
    admin = create_engine(url, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(text(f"CREATE SCHEMA {schema}"))
    yield url.update_query_dict({"options": f"-csearch_path={schema}"}).render_as_string(False)
    with admin.connect() as connection:
        connection.execute(text(f"DROP SCHEMA {schema} CASCADE"))
    admin.dispose()


@pytest.fixture
def store(database: str) -> Iterator[Store]:
    """An open, empty store."""
    with Store.open(database, create=True, busy_seconds=5.0) as opened:
        yield opened


@pytest.fixture
def study(store: Store) -> tables.Study:
    """A study in `store`."""
    return new_study(store)
