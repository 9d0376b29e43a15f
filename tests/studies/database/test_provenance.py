"""Which code and libraries made a number."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

from studies.database import provenance
from tests.support.processes import ROOT


def git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-c", "user.name=n", "-c", "user.email=e@e", *arguments],
        cwd=folder, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout.strip()


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    provenance._git_commit.cache_clear()
    yield
    provenance._git_commit.cache_clear()


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """As after pip install: the package's own files are in no repository."""
    folder = tmp_path / "site-packages" / "studies"
    folder.mkdir(parents=True)
    monkeypatch.setattr(provenance, "__file__", str(folder / "provenance.py"))
    return folder


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's repository with one commit, tagged, as current directory."""
    folder = tmp_path / "project"
    folder.mkdir()
    git(folder, "init", "-q")
    (folder / "run.yaml").write_text("a: 1\n")
    git(folder, "add", "run.yaml")
    git(folder, "commit", "-q", "-m", "first")
    git(folder, "tag", "-a", "v1", "-m", "v1")
    monkeypatch.chdir(folder)
    return folder


def test_the_users_repository_where_the_package_is_installed(
    installed: Path, project: Path
) -> None:
    """Changed files make it dirty, new ones do not; it is read once a process."""
    commit = git(project, "rev-parse", "HEAD")
    (project / "notes.txt").write_text("new")
    assert provenance.git_commit() == commit
    (project / "run.yaml").write_text("a: 2\n")
    assert provenance.git_commit() == commit
    provenance._git_commit.cache_clear()
    assert provenance.git_commit() == f"{commit}-dirty"
    assert re.fullmatch(r"[0-9a-f]{40,64}", commit), "as its column takes"


def test_an_environment_inside_the_users_repository_is_no_checkout(
    project: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """`.venv/lib/…/studies` lies in the user's repository, but is not of it."""
    folder = project / ".venv" / "studies"
    folder.mkdir(parents=True)
    (folder / "provenance.py").touch()
    monkeypatch.setattr(provenance, "__file__", str(folder / "provenance.py"))
    monkeypatch.chdir(tmp_path)
    assert provenance.git_commit() is None


def test_the_packages_own_checkout_comes_first(
    tmp_path: Path, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkout = tmp_path / "checkout"
    (checkout / "studies").mkdir(parents=True)
    source = checkout / "studies" / "provenance.py"
    shutil.copy(ROOT / "studies" / "database" / "provenance.py", source)
    git(checkout, "init", "-q")
    git(checkout, "add", ".")
    git(checkout, "commit", "-q", "-m", "package")
    monkeypatch.setattr(provenance, "__file__", str(source))
    assert provenance.git_commit() == git(checkout, "rev-parse", "HEAD")
    assert provenance.git_commit() != git(project, "rev-parse", "HEAD")


def test_no_repository_no_commit_no_git(
    installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = tmp_path / "plain"
    plain.mkdir()
    monkeypatch.chdir(plain)
    assert provenance.git_commit() is None
    provenance._git_commit.cache_clear()
    git(plain, "init", "-q")
    assert provenance.git_commit() is None, "a repository without a commit"
    provenance._git_commit.cache_clear()
    monkeypatch.setenv("PATH", str(plain))
    assert provenance.git_commit() is None, "git is not installed"


def test_a_git_that_hangs_does_not_hang_us(
    installed: Path, project: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    slow = tmp_path / "bin"
    slow.mkdir()
    (slow / "git").write_text("#!/bin/sh\nexec sleep 30\n")
    (slow / "git").chmod(0o755)
    monkeypatch.setenv("PATH", f"{slow}:/usr/bin:/bin")
    monkeypatch.setattr(provenance, "_GIT_SECONDS", 0.1)
    assert provenance.git_commit() is None


def test_versions_are_those_installed() -> None:
    found = provenance.versions()
    assert found["python"] == platform.python_version()
    assert found["torch"] == metadata.version("torch")
    assert set(found) == {"python", "torch", "optuna", "numpy", "budgetsweep"}


def test_torch_in_the_environment_is_not_imported() -> None:
    code = (
        "import sys; from studies.database.provenance import versions; versions()\n"
        "import studies.database.store, studies.database.reader\n"
        "print([m for m in ('torch', 'optuna', 'numpy', 'alembic') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
