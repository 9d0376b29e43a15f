"""Files appear whole or not at all; one process at a time holds a lock."""

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from budgetsweep.files import atomic_file, atomic_folder, file_lock, write_text_atomically


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text_atomically(path, "old")

    class Unwritable(str):
        """Text that the file refuses, as a full disk would in the middle of a write."""

        __slots__ = ()

    with pytest.raises(UnicodeEncodeError):
        write_text_atomically(path, Unwritable("\ud800"))
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("fixed", [None, ".temporary"])
def test_a_failed_write_leaves_nothing(tmp_path: Path, fixed: str | None) -> None:
    def fail() -> None:
        with atomic_file(tmp_path / "f", fixed and tmp_path / fixed) as file:
            file.write(b"half")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_appears_with_all_of_its_files(tmp_path: Path) -> None:
    def fill(fails: bool) -> None:
        with atomic_folder(tmp_path / "made") as folder:
            (folder / "a").write_text("a")
            assert not (tmp_path / "made").exists()
            if fails:
                raise KeyError

    with pytest.raises(KeyError):
        fill(fails=True)
    assert list(tmp_path.iterdir()) == []
    fill(fails=False)
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["a"]


def test_a_lock_is_waited_for_and_goes_with_its_process(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    script = f"""
import time
from pathlib import Path
from budgetsweep.files import file_lock
with file_lock(Path({str(path)!r})):
    print("held", flush=True)
    time.sleep(60)
"""
    holder = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    waited: list[str] = []
    with pytest.raises(TimeoutError), file_lock(path, seconds=0.2):
        pass
    threading.Timer(0.3, holder.kill).start()
    with file_lock(path, when_waiting=lambda: waited.append("said")):
        assert waited == ["said"]
    holder.wait()
    holder.stdout.close()
    with file_lock(path, seconds=0, when_waiting=lambda: waited.append("again")):
        assert waited == ["said"]
