"""`data prepare` and `data info` on WikiHow's file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.commands import run, run_json

ROWS = [
    "headline,title,text",
    *(f'"Do {i}.,","How to Do {i}","First do {i}, then more\nand more."' for i in range(30)),
    "one,two",
    "a headline that is too long,How to,short",
]


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BUDGETSWEEP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "300")
    path = tmp_path / "wikihowAll.csv"
    path.write_text("\n".join(ROWS) + "\n")
    return path


def test_pairs_bad_rows_and_dropped_articles_are_said(source: Path) -> None:
    output = run("data", "prepare", str(source), "--tokenizer", "bytes")
    assert "30 pairs; left out: 1 bad, 1 dropped" in output
    lines = [line for line in output.splitlines() if line.startswith(("training:", "valid"))]
    n_pairs = [int(line.split()[1]) for line in lines]
    assert len(n_pairs) == 2
    assert sum(n_pairs) == 30
    # "How to Do 17\nDo 17." and "First do 17, then more\nand more." in bytes.
    assert "source of 19 tokens (median; 90 % within 19, the longest 19)" in lines[0]
    assert "target of 32 tokens (median; 90 % within 32, the longest 32)" in lines[0]
    info = run("data", "info")
    assert "30 pairs" in info
    assert "1 bad, 1 dropped" in info
    (entry,) = run_json("data", "info")
    named = {key: entry[key] for key in ("pairs", "documents", "bad_records", "dropped_documents")}
    assert named == {"pairs": True, "documents": 30, "bad_records": 1, "dropped_documents": 1}


def test_wrong_columns_are_one_line(source: Path, refused: Callable[..., str]) -> None:
    source.write_text("summary,body\n1,2\n")
    error = refused("data", "prepare", str(source), "--tokenizer", "bytes")
    assert error.endswith(
        f"{source}: columns 'summary', 'body'; expected headline, title and text (pairs), or a "
        "column 'text' (data.text_field)"
    )
