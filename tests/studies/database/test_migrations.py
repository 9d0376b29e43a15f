"""Versions of the schema."""

from __future__ import annotations

import hashlib
import logging
import shutil
import sqlite3
import tomllib
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from optuna.storages import RDBStorage
from sqlalchemy import Connection, inspect, text
from sqlalchemy.schema import CreateIndex, CreateTable

from budgetsweep.errors import StudyError
from reports.read import read_study
from studies.database import migrations, tables
from studies.database.connection import open_engine, tune_sqlite
from studies.database.store import Store
from tests.support.processes import ROOT, run_at_once
from tests.support.tiny_studies import add_run


def test_a_change_of_the_tables_is_a_new_version() -> None:
    """Add a file to `versions/`, set `HEAD` to it, and then this checksum."""
    tables_sql = [str(CreateTable(t)) for t in tables.Base.metadata.sorted_tables]
    indices = sorted(
        str(CreateIndex(i)) for t in tables.Base.metadata.sorted_tables for i in t.indexes
    )
    digest = hashlib.sha256("".join(tables_sql + indices).encode()).hexdigest()
    assert (migrations.HEAD, digest[:16]) == ("0001", "a6d9eaba4992db79")


def test_head_is_the_newest_script(store: Store) -> None:
    with store.engine.connect() as connection:
        scripts = ScriptDirectory.from_config(migrations.alembic_config(connection))
        assert scripts.get_heads() == [migrations.HEAD]
        assert migrations.current_version(connection) == migrations.HEAD


def test_a_newer_schema_is_refused_and_left_alone(database: str) -> None:
    with Store.open(database, create=True) as store, store.engine.begin() as connection:
        connection.execute(text(f"UPDATE {migrations.VERSION_TABLE} SET version_num = '0999'"))
    with pytest.raises(StudyError, match=r"newer budgetsweep \(schema 0999, .*pip install"):
        Store.open(database)
    engine = open_engine(database, create=False)
    with engine.connect() as connection:
        assert migrations.current_version(connection) == "0999"
    engine.dispose()


def test_a_version_table_without_a_version_is_no_crash(tmp_path: Path) -> None:
    """As a kill between two statements of an unguarded upgrade would leave it."""
    path = tmp_path / "runs.db"
    with sqlite3.connect(path) as connection:
        connection.execute(f"CREATE TABLE {migrations.VERSION_TABLE} (version_num VARCHAR(32))")
    connection.close()
    with Store.open(path, create=True) as store:
        assert store.study_names() == []


def test_a_first_schema_that_fails_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("killed half-way")

    monkeypatch.setattr(command, "stamp", fail)
    path = tmp_path / "runs.db"
    with pytest.raises(RuntimeError, match="killed"):
        Store.open(path, create=True)
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT name FROM sqlite_master").fetchall() == []
    connection.close()


def next_version(monkeypatch: pytest.MonkeyPatch, folder: Path, more: str = "") -> None:
    """From now on there is a version after the head: runs have a mood. Then it does `more`."""
    scripts = folder / "scripts"
    shutil.copytree(ROOT / "studies" / "database" / "migrations", scripts)
    (scripts / "versions" / "v0002_mood.py").write_text(
        "import sqlalchemy as sa\n"
        "from alembic import op\n"
        f"revision, down_revision = '0002', '{migrations.HEAD}'\n"
        "def upgrade():\n"
        "    mood = sa.Column('mood', sa.Integer(), nullable=False, server_default='7')\n"
        f"    op.add_column('bs_run', mood)\n    {more}\n"
    )
    ours = migrations.alembic_config

    def config(connection: Connection) -> Config:
        found = ours(connection)
        found.set_main_option("script_location", str(scripts))
        return found

    monkeypatch.setattr(migrations, "alembic_config", config)
    monkeypatch.setattr(migrations, "HEAD", "0002")


def test_a_study_of_the_schema_before_is_brought_up_to_date(
    store: Store,
    study: tables.Study,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run_id = add_run(store, study.id)
    next_version(monkeypatch, tmp_path)
    url = store.engine.url.render_as_string(hide_password=False)
    assert [run.id for run in read_study(url).runs] == [run_id]
    with store.engine.connect() as connection:
        assert migrations.current_version(connection) == "0001"  # reading changes nothing
    with Store.open(url) as opened, opened.engine.connect() as connection:
        assert migrations.current_version(connection) == "0002"
        assert connection.scalar(text("SELECT mood FROM bs_run")) == 7
        assert [run.id for run in opened.runs(study.id)] == [run_id]


def test_an_upgrade_that_fails_leaves_the_schema_before(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    next_version(monkeypatch, tmp_path, "raise RuntimeError('killed half-way')")
    with pytest.raises(RuntimeError, match="killed"):
        Store.open(store.engine.url.render_as_string(hide_password=False))
    with store.engine.connect() as connection:
        assert migrations.current_version(connection) == "0001"
        assert "mood" not in {c["name"] for c in inspect(connection).get_columns("bs_run")}


@pytest.mark.parametrize("first", ["optuna", "ours"])
def test_optuna_lives_in_the_same_database(database: str, first: str) -> None:
    if first == "ours":
        Store.open(database, create=True).close()
    optuna_storage = RDBStorage(database)
    tune_sqlite(optuna_storage.engine)
    with Store.open(database, create=True) as store:
        with store.engine.connect() as connection:
            ours = connection.scalar(text(f"SELECT version_num FROM {migrations.VERSION_TABLE}"))
            theirs = connection.scalar(text("SELECT version_num FROM alembic_version"))
        assert ours == migrations.HEAD
        assert theirs == optuna_storage.get_head_version()
        optuna_storage.create_new_study([], "s")
        assert store.study_names() == []
    optuna_storage.engine.dispose()


def test_opening_says_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    logging.getLogger("alembic").setLevel(logging.NOTSET)
    Store.open(tmp_path / "runs.db", create=True).close()
    assert [r for r in caplog.records if r.levelno >= logging.INFO] == []
    assert logging.getLogger("alembic.runtime.migration").level == logging.NOTSET


def test_processes_that_open_a_fresh_file_at_once(tmp_path: Path) -> None:
    errors = run_at_once(
        "from alembic import command, script\n"  # loaded beforehand: they shall collide
        "from studies.database.store import Store\n"
        "from tests.support.tiny_studies import study_settings",
        "for n in range(3):\n"
        "    with Store.open(folder / f'{n}.db', create=True) as store:\n"
        "        store.create_study(name, study_settings())",
        tmp_path,
        "abc",
    )
    assert errors == ["", "", ""]
    for n in range(3):
        with Store.open(tmp_path / f"{n}.db") as store:
            assert sorted(store.study_names()) == ["a", "b", "c"]


def test_scripts_are_in_the_installed_package() -> None:
    """Every file under studies/migrations is a module of a package or declared package data."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    patterns = settings["package-data"]["studies"]
    assert "studies*" in settings["packages"]["find"]["include"]
    folder = ROOT / "studies"
    declared = {path for pattern in patterns for path in folder.glob(pattern)}
    for path in (folder / "database" / "migrations").rglob("*"):
        if path.is_dir() or "__pycache__" in path.parts:
            continue
        is_module = path.suffix == ".py" and (path.parent / "__init__.py").exists()
        assert is_module or path in declared, path
