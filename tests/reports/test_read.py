import sqlite3

import numpy as np
import pytest
from sqlalchemy import create_engine, func, select
from sqlalchemy.orm import Session

from budgetsweep.errors import StudyError
from reports.read import read_study
from studies.database import connection as storage
from studies.database.reader import Reader
from studies.database.tables import Base, LedgerEntry, PointRow, Rejection, Run
from tests.support.synthetic_study import BEGIN, fill_database


@pytest.fixture
def study_file(tmp_path):
    path = tmp_path / "study.db"
    fill_database(f"sqlite:///{path}", trials=3, failed=1, rejections=2, points=4)
    return path


def test_everything_is_read(study_file):
    data = read_study(str(study_file))
    with Session(create_engine(f"sqlite:///{study_file}")) as session:
        assert len(data.runs) == session.scalar(select(func.count()).select_from(Run)) == 4
        assert len(data.rejections) == session.scalar(select(func.count()).select_from(Rejection))
        n_points = session.scalar(select(func.count()).select_from(PointRow))
        points = session.scalars(select(PointRow).where(PointRow.run_id == data.runs[0].id)).all()
    assert sum(len(curve.step) for curve in data.curves.values()) == n_points
    curve = data.curves[data.runs[0].id]
    assert curve.flops.tolist() == [float(point.flops) for point in points]
    assert curve.val_loss_nats.tolist() == pytest.approx(
        [np.nan if p.val_loss_nats is None else p.val_loss_nats for p in points], nan_ok=True
    )


def test_the_ledger_is_exact_beyond_64_bits(study_file):
    huge = 2**80 + 1
    with Session(create_engine(f"sqlite:///{study_file}")) as session, session.begin():
        for attempt in (1, 2):
            session.add(
                LedgerEntry(
                    study_id=1, run_id=1, created_utc=BEGIN, entry="spent", attempt=attempt,
                    steps=1, tokens=1, flops_nanogpt=huge, flops_matmul=huge, flops_mac=huge,
                )
            )  # fmt: skip
    before = read_study(str(study_file)).spending[1]
    assert before.spent.nanogpt == before.planned.nanogpt + 2 * huge


def foreign(path):
    path.write_bytes(b"this is no database at all, just text" * 100)


def another_version(path):
    fill_database(f"sqlite:///{path}", trials=1, failed=0, rejections=0)
    with sqlite3.connect(path) as connection:
        connection.execute("ALTER TABLE bs_run DROP COLUMN epochs")
    connection.close()


def another_program(path):
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE songs (title TEXT)")
    connection.close()


def without_a_study(path):
    engine = create_engine(f"sqlite:///{path}")
    Base.metadata.create_all(engine)
    engine.dispose()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: None, r"study\.db: no such study database"),
        (lambda path: path.touch(), r"study\.db"),
        (foreign, r"study\.db"),
        (another_version, "cannot be read as a study database of this version"),
        (another_program, "holds no study of budgetsweep"),
        (without_a_study, "holds no study yet"),
    ],
)
def test_what_holds_no_study_is_said_and_left_alone(tmp_path, make, said):
    path = tmp_path / "study.db"
    make(path)
    before = path.read_bytes() if path.exists() else None
    with pytest.raises(StudyError, match=said):
        read_study(str(path))
    assert (path.read_bytes() if path.exists() else None) == before


def test_the_study_is_chosen_by_name_or_is_the_newest(study_file):
    fill_database(f"sqlite:///{study_file}", name="second", trials=1, failed=0, rejections=0)
    assert read_study(str(study_file)).study.name == "second"
    assert read_study(str(study_file)).other_studies == ["c4-1e15"]
    first = read_study(str(study_file), "c4-1e15")
    assert first.study.name == "c4-1e15"
    assert {run.study_id for run in first.runs} == {first.study.id}
    with pytest.raises(StudyError, match="no study 'secnd'; did you mean 'second'"):
        read_study(str(study_file), "secnd")


def test_reading_changes_nothing(study_file):
    before = study_file.read_bytes()
    read_study(str(study_file))
    assert study_file.read_bytes() == before
    engine = storage.open_for_reading(storage.storage_url(study_file))
    with engine.connect() as connection, pytest.raises(Exception, match="readonly"):
        connection.exec_driver_sql("DELETE FROM bs_run")
    engine.dispose()


def test_a_running_search_is_not_disturbed(study_file):
    """Another process is in the middle of a write; we read the moment before, it goes on."""
    writer = sqlite3.connect(study_file, isolation_level=None, timeout=0)
    assert writer.execute("PRAGMA journal_mode = WAL").fetchone() == ("wal",)
    writer.execute("BEGIN IMMEDIATE")
    writer.execute("DELETE FROM bs_rejection")
    assert len(read_study(str(study_file)).rejections) == 2
    writer.execute("COMMIT")
    assert len(read_study(str(study_file)).rejections) == 0
    writer.close()


def test_all_tables_show_one_moment(study_file, monkeypatch):
    """A commit between two of our reads is in neither."""
    writer = sqlite3.connect(study_file, isolation_level=None, timeout=0)
    writer.execute("PRAGMA journal_mode = WAL")
    spending = Reader.spending

    def commit_then_read(reader, study_id):
        writer.execute("DELETE FROM bs_ledger")
        writer.execute("DELETE FROM bs_point")
        return spending(reader, study_id)

    monkeypatch.setattr(Reader, "spending", commit_then_read)
    data = read_study(str(study_file))
    writer.close()
    assert len(data.spending) == len(data.runs)
    assert len(data.curves) == len(data.runs)


@pytest.mark.parametrize("as_root", [True, False])
def test_a_write_protected_copy_is_read(study_file, tmp_path, monkeypatch, as_root):
    if not as_root:  # whoever runs the tests: the folder counts as one that cannot be written
        monkeypatch.setattr(storage.os, "access", lambda path, mode: False)
    engine = create_engine(f"sqlite:///{study_file}")
    with engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA journal_mode = WAL")
    engine.dispose()
    folder = tmp_path / "archive"
    folder.mkdir()
    copy = folder / "study.db"
    copy.write_bytes(study_file.read_bytes())
    copy.chmod(0o444)
    folder.chmod(0o555)
    try:
        assert len(read_study(str(copy)).runs) == 4
    finally:
        folder.chmod(0o755)


def test_a_name_with_odd_characters_is_read(study_file, tmp_path):
    odd = tmp_path / "50% of #1 städy.db"
    study_file.rename(odd)
    assert read_study(str(odd)).study.name == "c4-1e15"
    assert read_study(storage.storage_url(odd)).study.name == "c4-1e15"


def test_a_damaged_loss_is_missing_and_not_a_number(study_file):
    with Session(create_engine(f"sqlite:///{study_file}")) as session, session.begin():
        point = session.scalars(select(PointRow)).first()
        assert point is not None
        point.val_loss_nats, run_id = float("inf"), point.run_id
    curve = read_study(str(study_file)).curves[run_id]
    assert np.isnan(curve.val_loss_nats[0])
