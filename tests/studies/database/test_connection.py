"""URLs, engines and errors in plain words."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from sqlalchemy import create_engine, event, make_url, text
from sqlalchemy.exc import OperationalError

from budgetsweep.errors import StudyError
from studies.database.connection import (
    describe,
    is_new_file,
    open_engine,
    open_patiently,
    storage_url,
    tune_sqlite,
)
from studies.database.store import Store
from tests.support.processes import ROOT, run_at_once
from tests.support.tiny_studies import study_settings


class TestStorageUrl:
    def test_a_file_name_becomes_an_absolute_sqlite_url(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("HOME", str(tmp_path))
        expected = f"sqlite:///{tmp_path}/runs.db"
        assert storage_url("runs.db") == storage_url("~/runs.db") == expected
        assert storage_url(Path("runs.db")) == expected
        assert storage_url("sqlite:///runs.db") == expected
        assert storage_url(expected) == expected

    @pytest.mark.parametrize("name", ["a b.db", "50%20.db", "ä#c.db", "x=1&y.db", "a;b.db"])
    def test_unusual_file_names_are_opened_as_they_are(self, tmp_path: Path, name: str) -> None:
        Store.open(tmp_path / name, create=True).close()
        assert (tmp_path / name).is_file()
        Store.open(storage_url(tmp_path / name)).close()

    @pytest.mark.parametrize(
        ("storage", "message"),
        [
            ("", "storage is empty; give a file such as runs.db"),
            ("what?.db", "cannot contain `?`"),
            (str(ROOT), "is a directory; give a file in it"),
            ("postgres://h/db", "unknown kind of database 'postgres'; did you mean 'postgresql'?"),
            ("nonsense://h/db", "unknown kind of database 'nonsense'; known: mysql, postgresql"),
            ("://", "not a database URL"),
            ("postgresql://h:port/db", "not a database URL"),
            ("mssql+pyodbc://h/db", "needs the package pyodbc: pip install 'pyodbc'"),
            ("sqlite://", "a study in memory would be lost"),
            ("sqlite:///:memory:", "a study in memory would be lost"),
            ("sqlite:///file:x?mode=memory&uri=true", "a study in memory would be lost"),
        ],
    )
    def test_what_cannot_be_a_storage_is_refused_in_one_line(
        self, storage: str, message: str
    ) -> None:
        with pytest.raises(StudyError) as caught:
            storage_url(storage)
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_a_password_is_kept_in_the_url_and_hidden_in_messages(self) -> None:
        url = make_url("postgresql+psycopg://me:secret@h/db")
        assert "secret" not in describe(url)
        assert "me" in describe(url)


class TestOpenEngine:
    def test_pragmas(self, tmp_path: Path) -> None:
        engine = open_engine(storage_url(tmp_path / "a.db"), create=True)
        with engine.connect() as connection:
            got = [
                connection.exec_driver_sql(f"PRAGMA {name}").scalar()
                for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
            ]
        engine.dispose()
        assert got == ["wal", 1, 1, 60_000]

    def test_missing_without_create(self, tmp_path: Path) -> None:
        path = tmp_path / "none.db"
        with pytest.raises(StudyError, match=r"no such study database; run `budgetsweep search`"):
            open_engine(storage_url(path), create=False)
        assert not path.exists()

    @pytest.mark.parametrize("form", ["{}", "sqlite:///{}", "sqlite:///file:{}?uri=true"])
    def test_what_is_not_there_yet_is_a_new_file(self, tmp_path: Path, form: str) -> None:
        storage = form.format(tmp_path / "folder" / "new.db")
        assert is_new_file(storage)
        open_engine(storage_url(storage), create=True).dispose()
        assert not is_new_file(storage)

    @pytest.mark.parametrize("content", [b"hello, I am a diary\n" * 50, b"SQLite", b"PK\x03\x04"])
    @pytest.mark.parametrize("create", [True, False])
    def test_a_file_that_is_no_database(self, tmp_path: Path, content: bytes, create: bool) -> None:
        path = tmp_path / "diary.txt"
        path.write_bytes(content)
        with pytest.raises(StudyError, match="is not a SQLite database; give another file"):
            open_engine(storage_url(path), create=create)
        assert path.read_bytes() == content

    def test_an_empty_file_is_a_fresh_database(self, tmp_path: Path) -> None:
        path = tmp_path / "empty.db"
        path.touch()
        with pytest.raises(StudyError, match="holds no study of budgetsweep"):
            open_engine(storage_url(path), create=False)
        Store.open(path, create=True).close()

    def test_a_database_of_another_program_is_left_alone(self, tmp_path: Path) -> None:
        path = tmp_path / "places.db"
        with sqlite3.connect(path) as other:
            other.execute("CREATE TABLE bookmarks (url TEXT)")
        other.close()
        with pytest.raises(StudyError, match="belongs to another program; give another file"):
            Store.open(path, create=True)
        with pytest.raises(StudyError, match="holds no study of budgetsweep"):
            Store.open(path)
        with sqlite3.connect(path) as other:
            tables = other.execute("SELECT name FROM sqlite_master").fetchall()
        other.close()
        assert tables == [("bookmarks",)]

    @pytest.mark.parametrize("kept", [100, 5000])
    def test_damage_is_told(self, tmp_path: Path, kept: int) -> None:
        """Overwritten inside, or cut off."""
        path = tmp_path / "runs.db"
        Store.open(path, create=True).close()
        content = path.read_bytes()
        path.write_bytes(content[:kept] + (b"\xff" * 3996 + content[4096:] if kept == 100 else b""))
        with pytest.raises(StudyError, match=r"runs\.db: .*damaged"):
            Store.open(path)

    def test_a_place_that_cannot_be_written(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("x")
        for place in (tmp_path / "file" / "runs.db", Path("/proc/budgetsweep/runs.db")):
            with pytest.raises(StudyError, match=r"cannot be opened .*give another place"):
                open_engine(storage_url(place), create=True)

    def test_a_server_that_does_not_answer(self) -> None:
        # One line, whether or not the driver is installed where the tests run.
        with pytest.raises(StudyError, match=r"needs the package|the database server reports"):
            open_engine(storage_url("postgresql+psycopg://u:pw@127.0.0.1:1/db"), create=True)

    def test_a_locked_file_is_told_after_the_wait(self, tmp_path: Path) -> None:
        path = tmp_path / "runs.db"
        Store.open(path, create=True).close()
        holder = sqlite3.connect(path, isolation_level=None)
        holder.execute("BEGIN EXCLUSIVE")
        store = Store.open(path, busy_seconds=0.1)  # readers do not wait for a writer
        with pytest.raises(StudyError, match="another process keeps the database locked"):
            store.create_study("s", study_settings())
        holder.execute("ROLLBACK")
        holder.close()
        assert store.study_names() == []
        store.close()

    def test_journal_locked_by_another_process_while_switching(self, tmp_path: Path) -> None:
        """The switch to WAL does not honour SQLite's own busy timeout; ours must wait."""
        path = tmp_path / "runs.db"
        with sqlite3.connect(path) as first:
            first.execute("CREATE TABLE bs_study (id INTEGER)")
        first.close()
        code = (
            "import sqlite3, sys, time\n"
            "c = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
            "c.execute('BEGIN IMMEDIATE'); print('held', flush=True)\n"
            "time.sleep(0.4); c.execute('ROLLBACK')\n"
        )
        with subprocess.Popen(
            [sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True
        ) as holder:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "held\n"
            engine = open_engine(storage_url(path), create=False, busy_seconds=20.0)
            with engine.connect() as connection:
                assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
            engine.dispose()


class TestOpenPatiently:
    @pytest.mark.slow
    def test_optuna_is_opened_by_processes_at_once(self, tmp_path: Path) -> None:
        """Without patience about half of these fail on tables that another has just made."""
        errors = run_at_once(
            "from optuna.storages import RDBStorage\n"
            "from studies.database.connection import open_patiently, tune_sqlite",
            "for n in range(4):\n"
            "    storage = open_patiently(lambda: RDBStorage(f'sqlite:///{folder}/{n}.db'))\n"
            "    tune_sqlite(storage.engine)\n"
            "    storage.create_new_study([], name)",
            tmp_path,
            "ab",
        )
        assert not any("Traceback" in error for error in errors), errors
        for n in range(4):
            with sqlite3.connect(tmp_path / f"{n}.db") as database:
                names = database.execute("SELECT study_name FROM studies").fetchall()
                versions = database.execute("SELECT count(*) FROM version_info").fetchall()
            database.close()
            assert sorted(names) == [("a",), ("b",)]
            assert versions == [(1,)]

    @pytest.mark.parametrize(
        ("message", "tries"), [("disk is full", [1]), ("database is locked", range(2, 99))]
    )
    def test_patience_is_for_collisions_and_ends(self, message: str, tries: Sequence[int]) -> None:
        calls: list[int] = []

        def make() -> None:
            calls.append(1)
            raise OperationalError("SELECT", {}, sqlite3.OperationalError(message))

        with pytest.raises(OperationalError, match=message):
            open_patiently(make, seconds=0.1)
        assert len(calls) in tries


class TestTransactions:
    def test_readers_read_while_a_writer_writes(self, tmp_path: Path) -> None:
        path = tmp_path / "runs.db"
        store = Store.open(path, create=True, busy_seconds=0.1)
        with store._write(), Store.open(path, busy_seconds=0.1) as reader:
            assert reader.study_names() == []
        store.close()

    def test_tuned_engine_takes_the_write_lock_at_once(self, tmp_path: Path) -> None:
        """Optuna reads, then writes in one transaction: it must hold the lock from its start."""
        engine = create_engine(f"sqlite:///{tmp_path / 'o.db'}")
        with engine.begin() as connection:
            connection.execute(text("CREATE TABLE t (x INTEGER)"))
        tune_sqlite(engine)
        begun: list[str] = []

        @event.listens_for(engine, "before_cursor_execute")
        def _statement(*arguments: object) -> None:
            begun.append(str(arguments[2]))

        other = sqlite3.connect(tmp_path / "o.db", timeout=0.0, isolation_level=None)
        with engine.begin() as connection:
            connection.execute(text("SELECT x FROM t"))
            assert begun[0] == "BEGIN IMMEDIATE"
            with pytest.raises(sqlite3.OperationalError, match="locked"):
                other.execute("BEGIN IMMEDIATE")
            connection.execute(text("INSERT INTO t VALUES (1)"))
            assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert other.execute("SELECT x FROM t").fetchall() == [(1,)]
        other.close()
        engine.dispose()

    def test_a_failed_transaction_leaves_nothing(self, tmp_path: Path) -> None:
        engine = create_engine(f"sqlite:///{tmp_path / 'o.db'}")
        tune_sqlite(engine)
        connection = engine.connect()
        connection.execute(text("CREATE TABLE t (x INTEGER)"))
        connection.close()  # without commit, as an exception would
        with engine.begin() as connection:
            rows = connection.execute(text("SELECT name FROM sqlite_master")).all()
        engine.dispose()
        assert rows == []
