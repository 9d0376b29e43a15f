"""Studies of every kind, each written and reported once a session."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, select
from sqlalchemy.orm import Session

from reports.build import ReportFiles, write_report
from reports.facts import Facts
from reports.figures import runs
from reports.read import read_study
from reports.sections import FIGURES
from studies.database.tables import Run
from tests.support.synthetic_study import fill_database

HOSTILE = (
    "<script>alert(1)</script>|`x`\n# h $\\frac{ & \"q\" 's' ]]> --> \x00\x1b漢字😀 "
    "https://x.y <img src=x onerror=alert(1)> [a](b) __init__ *b* ~~s~~"
)

VARIANTS: dict[str, dict[str, Any]] = {
    "full": {"trials": 24, "rejections": 9, "failed": 2},
    "many": {"trials": 440, "rejections": 420, "failed": 20, "points": 3, "evals": 3},
    "empty": {"trials": 0, "rejections": 0, "failed": 0, "promotion": None},
    "all rejected": {"trials": 0, "rejections": 8, "failed": 0, "promotion": None},
    "all failed": {"trials": 3, "rejections": 2, "failed": 3, "promotion": None},
    "one trial": {"trials": 1, "rejections": 0, "failed": 0, "promotion": None, "bits": False},
    "promotion running": {
        "trials": 8, "rejections": 3, "pruned": 1, "unfinished": 2, "promotion": "running",
        "recomputed_steps": 40,
    },
    "promotion failed": {
        "trials": 13, "rejections": 0, "failed": 0, "promotion": "failed",
        "convention": "matmul",
    },
    "hostile": {"trials": 14, "rejections": 6, "text": HOSTILE},
}  # fmt: skip


@dataclass(frozen=True)
class Built:
    """A study's database and its report."""

    database: Path
    files: ReportFiles
    html: str
    markdown: str


@pytest.fixture(scope="session")
def database(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The database of a variant, by name."""
    folder = tmp_path_factory.mktemp("studies")

    @cache
    def make(variant: str) -> Path:
        path = folder / f"{variant.replace(' ', '-')}.db"
        fill_database(f"sqlite:///{path}", **VARIANTS[variant])
        return path

    return make


@pytest.fixture(scope="session")
def facts(database: Callable[[str], Path]) -> Callable[[str], Facts]:
    """The facts of a variant, by name."""
    return cache(lambda variant: Facts(read_study(str(database(variant)))))


@pytest.fixture(scope="session")
def built(
    database: Callable[[str], Path],
    facts: Callable[[str], Facts],
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str], Built]:
    """The report of a variant, by name; promotions differ in one figure only."""
    folder = tmp_path_factory.mktemp("reports")

    @cache
    def make(variant: str) -> Built:
        drawn = (runs.learning_curves,) if variant.startswith("promotion") else FIGURES
        files = write_report(facts(variant), folder / variant.replace(" ", "-"), drawn)
        html = files.html.read_text(encoding="utf-8")
        markdown = files.markdown.read_text(encoding="utf-8")
        return Built(database(variant), files, html, markdown)

    return make


@pytest.fixture
def study(tmp_path: Path) -> Callable[..., Facts]:
    """The facts of a small study that a test has changed: change(session, its runs)."""
    path = tmp_path / "study.db"

    def make(change: Callable[[Session, Sequence[Run]], None] | None = None, **plan: Any) -> Facts:
        plan = {"trials": 6, "failed": 0, "rejections": 0, "promotion": None} | plan
        fill_database(f"sqlite:///{path}", **plan)
        engine = create_engine(f"sqlite:///{path}")
        with Session(engine) as session, session.begin():
            if change is not None:
                change(session, session.scalars(select(Run).order_by(Run.id)).all())
        engine.dispose()
        return Facts(read_study(str(path)))

    return make
