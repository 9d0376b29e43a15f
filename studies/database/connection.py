"""Where a study is kept: database URLs, engines, and database errors in plain words.

SQLite files run in WAL mode with synchronous NORMAL and a busy timeout: readers never wait for
the writer, and a process killed at any byte loses no committed transaction. The driver's own
transaction handling is switched off; SQLAlchemy's `begin` event opens every transaction, with
BEGIN IMMEDIATE for writers, because a reader that turns writer half-way fails at once under load
instead of waiting.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event, inspect, make_url
from sqlalchemy.engine import URL
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, OperationalError
from sqlalchemy.pool import NullPool

from budgetsweep.config import did_you_mean
from budgetsweep.errors import StudyError

T = TypeVar("T")

BUSY_SECONDS = 60.0
"""How long a writer waits for another before it gives up."""

BEGIN_OPTION = "budgetsweep_begin"
"""Execution option: the statement that opens a transaction on SQLite."""

READ, WRITE = "BEGIN", "BEGIN IMMEDIATE"

_MAGIC = b"SQLite format 3\x00"
_COLLISIONS = ("already exists", "unique constraint", "duplicate key", "locked")
_DRIVERS = {"psycopg2": "psycopg2-binary", "psycopg": "psycopg[binary]"}


def storage_url(storage: str | Path) -> str:
    """The SQLAlchemy URL of a storage: a file name becomes SQLite's, a URL stays as it is.

    Raises:
        StudyError: not a URL, an unknown kind of database, a driver that is not installed,
            a directory, or SQLite in memory (it would be lost with the process).
    """
    text = str(storage)
    if not text.strip():
        raise StudyError("storage is empty; give a file such as runs.db")
    if isinstance(storage, Path) or "://" not in text:
        path = Path(text).expanduser().absolute()
        if "?" in str(path):
            raise StudyError(f"{path}: a database file's name cannot contain `?`")
        url = URL.create("sqlite", database=str(path))
    else:
        url = _parse(text)
    if url.get_backend_name() == "sqlite":
        path = _sqlite_path(url)
        if path.is_dir():
            raise StudyError(
                f"{path} is a directory; give a file in it, such as {path / 'runs.db'}"
            )
        if not str(url.database).startswith("file:"):
            url = url.set(database=str(path))  # a relative one would follow the current directory
    return url.render_as_string(hide_password=False)


def _parse(text: str) -> URL:
    try:
        url = make_url(text)
    except (ArgumentError, ValueError) as error:
        raise StudyError(
            "the storage is not a database URL; give a file such as runs.db or "
            "postgresql://user:password@host/database"
        ) from error
    try:
        dialect = url.get_dialect()
    except NoSuchModuleError as error:
        backends = ("sqlite", "postgresql", "mysql")
        raise StudyError(
            f"unknown kind of database {url.drivername!r}{did_you_mean(url.drivername, backends)}"
        ) from error
    try:
        dialect.import_dbapi()
    except ImportError as error:
        module = (error.name or dialect.driver).partition(".")[0]
        raise StudyError(
            f"{url.drivername} needs the package {module}: pip install "
            f"'{_DRIVERS.get(module, module)}'"
        ) from error
    return url


def _sqlite_path(url: URL) -> Path:
    database = url.database or ""
    if database in ("", ":memory:", "file::memory:") or url.query.get("mode") == "memory":
        raise StudyError("a study in memory would be lost; give a file such as runs.db")
    return Path(database.removeprefix("file:").partition("?")[0]).absolute()


def is_new_file(storage: str | Path) -> bool:
    """Whether a database would be a new file; a server's may be there or not.

    Raises:
        StudyError: as `storage_url`.
    """
    url = make_url(storage_url(storage))
    return url.get_backend_name() == "sqlite" and not _sqlite_path(url).exists()


def describe(url: str | URL) -> str:
    """A storage as messages name it: the file, or the URL without its password."""
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite" and parsed.database:
        return parsed.database
    return parsed.render_as_string(hide_password=True)


def open_engine(url: str, *, create: bool, busy_seconds: float = BUSY_SECONDS) -> Engine:
    """Connect to a study database.

    With `create` a missing SQLite file and its folder are made, and a database without our tables
    is accepted. `busy_seconds`: how long to wait for another process's lock (SQLite).

    Raises:
        StudyError: missing, foreign, damaged, not a database, not writable, or no answer.
    """
    parsed = make_url(url)
    where = describe(parsed)
    is_sqlite = parsed.get_backend_name() == "sqlite"
    if is_sqlite:
        _check_file(_sqlite_path(parsed), create=create)
        engine = create_engine(parsed, connect_args={"timeout": busy_seconds})
        _listen(engine, default_begin=READ)
    else:
        engine = create_engine(parsed, pool_pre_ping=True)
    try:
        with clear_errors(where), engine.connect() as connection:
            _check_tables(connection, where, create=create, is_sqlite=is_sqlite)
    except BaseException:
        engine.dispose()
        raise
    return engine


def open_for_reading(url: str) -> Engine:
    """Connect to a study database without the means to write it.

    Raises:
        StudyError: missing, foreign, damaged, not a database, or no answer.
    """
    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite":
        return open_engine(url, create=False)
    path = _sqlite_path(parsed)
    _check_file(path, create=False, write=False)
    mode = "mode=ro"
    if not os.access(path.parent, os.W_OK) and not Path(f"{path}-wal").exists():
        # SQLite would make a file beside a database in WAL mode; on a read-only disk it cannot,
        # and nobody else can write there either.
        mode = "immutable=1"
    address = f"{path.as_uri()}?{mode}"

    def connect() -> sqlite3.Connection:
        return sqlite3.connect(address, uri=True, timeout=BUSY_SECONDS)

    engine = create_engine("sqlite://", creator=connect, poolclass=NullPool)
    with clear_errors(str(path)), engine.connect() as connection:
        _check_tables(connection, str(path), create=False, is_sqlite=True)
    return engine


def begin_snapshot(connection: Connection) -> None:
    """Begin a transaction whose reads all see one moment of the database."""
    if connection.dialect.name == "sqlite":
        # Python's driver begins no transaction for reads; each would see its own moment.
        connection.exec_driver_sql("BEGIN")
    elif connection.dialect.name == "postgresql":
        connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")


def tune_sqlite(engine: Engine) -> None:
    """Give an engine made elsewhere (Optuna's) the same pragmas; every transaction may write.

    Connections already in its pool are dropped. Nothing happens to another kind of database.
    """
    if engine.dialect.name == "sqlite":
        _listen(engine, default_begin=WRITE)
        engine.dispose()


def open_patiently(make: Callable[[], T], *, seconds: float = BUSY_SECONDS) -> T:
    """Call `make` again while it stumbles over another process that creates the same tables.

    Optuna creates and stamps its tables in several transactions: of two processes that open a
    fresh database at once, one usually fails on what the other has just made. All of it is there
    or harmless to repeat, so the next attempt finds more of it done.

    Raises:
        DBAPIError: it still fails after `seconds`, or for another reason.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            return make()
        except DBAPIError as error:
            text = str(error.orig).lower()
            if not any(word in text for word in _COLLISIONS) or time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def _listen(engine: Engine, *, default_begin: str) -> None:
    @event.listens_for(engine, "connect")
    def _connected(connection: Any, _record: Any) -> None:
        connection.isolation_level = None
        with closing(connection.cursor()) as cursor:
            _write_ahead_log(cursor)
            cursor.execute("PRAGMA synchronous = NORMAL")
            cursor.execute("PRAGMA foreign_keys = ON")

    @event.listens_for(engine, "begin")
    def _begun(connection: Connection) -> None:
        options = connection.get_execution_options()
        connection.exec_driver_sql(options.get(BEGIN_OPTION, default_begin))


def _write_ahead_log(cursor: Any) -> None:
    """Switch the file to WAL; it stays so. SQLite does not wait for the lock that this needs."""
    cursor.execute("PRAGMA busy_timeout")
    deadline = time.monotonic() + cursor.fetchone()[0] / 1000
    while cursor.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
        try:
            if cursor.execute("PRAGMA journal_mode = WAL").fetchone()[0] != "wal":
                return  # a file system without shared memory: the rollback journal works too
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def _check_file(path: Path, *, create: bool, write: bool = True) -> None:
    try:
        if path.exists():
            with path.open("rb") as file:
                head = file.read(len(_MAGIC))
            if head not in (b"", _MAGIC):
                raise StudyError(f"{path} is not a SQLite database; give another file")
            writable = os.access(path, os.W_OK) and os.access(path.parent, os.W_OK)
            if write and not writable:
                raise StudyError(
                    f"{path} cannot be written; SQLite needs it and its folder writable"
                )
        elif not create:
            raise StudyError(f"{path}: no such study database; run `budgetsweep search` first")
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            if not os.access(path.parent, os.W_OK):
                raise StudyError(f"{path.parent} cannot be written; give another place")
    except OSError as error:
        raise StudyError(
            f"{path} cannot be opened ({error.strerror}); give another place"
        ) from error


def _check_tables(connection: Connection, where: str, *, create: bool, is_sqlite: bool) -> None:
    tables = set(inspect(connection).get_table_names())
    if "bs_study" in tables:
        return
    if not create:
        raise StudyError(f"{where} holds no study of budgetsweep; run `budgetsweep search` first")
    # A file of Optuna's is welcome: its studies and ours live side by side.
    if is_sqlite and tables and not {"bs_alembic_version", "version_info"} & tables:
        raise StudyError(f"{where} belongs to another program; give another file")


@contextmanager
def clear_errors(where: str) -> Iterator[None]:
    """Turn what a user can fix (lock, full disk, damage, lost server) into one clear line.

    Raises:
        StudyError: such an error. Anything else is a defect and passes unchanged.
    """
    try:
        yield
    except DBAPIError as error:
        message = _explain(error)
        if message is None:
            raise
        raise StudyError(f"{where}: {message}") from error


_SQLITE_MESSAGES = {
    "locked": "another process keeps the database locked; stop it, then run the same command again",
    "is full": "no room left on the disk; free some and run the same command again, "
    "what is recorded is safe",
    "disk i/o error": "the disk refused to read or write; check it (full, failing, network drive?)",
    "malformed": "the database is damaged; restore a copy or give another file",
    "not a database": "not a SQLite database, or damaged; restore a copy or give another file",
    "readonly": "the database cannot be written; SQLite needs it and its folder writable",
    "unable to open": "the database cannot be opened; check the folder and its permissions",
}


def _explain(error: DBAPIError) -> str | None:
    text = " ".join(str(error.orig).split())
    if type(error.orig).__module__.startswith("sqlite3"):
        lower = text.lower()
        return next((said for key, said in _SQLITE_MESSAGES.items() if key in lower), None)
    if isinstance(error, OperationalError) or error.connection_invalidated:
        return f"the database server reports: {text}"
    if "permission denied" in text:
        return f"{text}; ask for write access"
    return None
