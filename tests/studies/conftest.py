"""Study databases to test on: SQLite always, PostgreSQL where a server is named.

BUDGETSWEEP_TEST_POSTGRES=postgresql+psycopg://user:password@host/database runs every test that
takes `database` there too, each in a schema of its own.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, make_url, text

from studies.database import tables
from studies.database.store import Store
from tests.support.tiny_studies import study_settings
from trainer.config import RunConfig

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
def new_study() -> Callable[..., tables.Study]:
    """Enter a study; keywords replace the defaults of `study_settings`."""

    def create(store: Store, name: str = "s", **changes: Any) -> tables.Study:
        return store.create_study(name, study_settings(**changes))

    return create


@pytest.fixture
def study(store: Store, new_study: Callable[..., tables.Study]) -> tables.Study:
    """A study in `store`."""
    return new_study(store)


@pytest.fixture
def run_config() -> Callable[..., RunConfig]:
    """A small run configuration of 12 steps; keywords replace top-level keys."""

    def build(**changes: Any) -> RunConfig:
        data: dict[str, Any] = {
            "tokenizer_encoding": "bytes",
            "model_config": {"n_embd": 16, "n_head": 2, "n_positions": 8, "n_layer": 1},
            "batch_size": 2,
            "seq_len": 8,
            "num_training_steps": 12,
            "max_lr": 1e-3,
        }
        return RunConfig.model_validate({**data, **changes})

    return build


@pytest.fixture
def add_run(run_config: Callable[..., RunConfig]) -> Callable[..., int]:
    """Queue a run; keywords replace the arguments of `Store.add_run`."""

    def add(store: Store, study_id: int, number: int = 0, **changes: Any) -> int:
        values: dict[str, Any] = {
            "kind": "trial",
            "params": {"n_embd": 16},
            "config": run_config(),
            "budget_flops": 10**15,
            "data_checksum": "d" * 64,
            "val_checksum": "v" * 64,
            "epochs": 0.5,
            "estimated_memory_bytes": 3 * 10**8,
            "output_dir": "outputs/0",
        }
        return store.add_run(study_id=study_id, number=number, **{**values, **changes})

    return add
