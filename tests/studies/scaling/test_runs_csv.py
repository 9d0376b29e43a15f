"""Tables of finished runs: names of columns, what is filled, what is passed over, mistakes."""

from __future__ import annotations

from pathlib import Path

import pytest

from budgetsweep.errors import DataError
from studies.scaling.fit_data import FitPoint
from studies.scaling.runs_csv import read_runs


def write(folder: Path, text: str) -> Path:
    path = folder / "runs.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_whole_table(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "dataset,Params,tokens,LR,batch_size,seq_len,val_loss,loss_stderr,remark\n"
        'c4,1e7,2e8,3e-3,64,128,4.5,0.01,"a, b"\n'
        "owt,2e7,3e8,,,,4.25,,\n",
    )
    table = read_runs(path)
    assert table.points == (
        FitPoint(1e7, 2e8, 4.5, 3e-3, 64 * 128, 0.01, "c4"),
        FitPoint(2e7, 3e8, 4.25, None, None, 0.0, "owt"),
    )
    assert table.flops == (6 * 1e7 * 2e8, 6 * 2e7 * 3e8)
    assert table.lines == (2, 3)
    assert table.notes == ("in 2 rows one of N, D and C was filled by C = 6·N·D",)
    assert table.groups == ["c4", "owt"]
    only = table.only("owt")
    assert only.points == table.points[1:]
    assert only.lines == (3,)
    with pytest.raises(DataError, match="no runs of group 'owtt'; did you mean 'owt'"):
        table.only("owtt")


def test_of_two_names_the_more_exact_counts(tmp_path: Path) -> None:
    (one,) = read_runs(write(tmp_path, "n,n_params,D,loss,val_loss\n1,1e7,2e8,4.9,4.5\n")).points
    assert one == FitPoint(1e7, 2e8, 4.5)


@pytest.mark.parametrize(
    ("head", "row"),
    [("N,D,loss", "1e7,2e8,4.5"), ("N,C,loss", "1e7,1.2e16,4.5"), ("C,D,loss", "1.2e16,2e8,4.5")],
)
def test_the_missing_one_of_three_is_filled(tmp_path: Path, head: str, row: str) -> None:
    table = read_runs(write(tmp_path, f"{head}\n{row}\n"))
    (one,) = table.points
    assert (one.n_params, one.tokens) == pytest.approx((1e7, 2e8))
    assert table.flops == pytest.approx((1.2e16,))
    assert len(table.notes) == 1


def test_flops_of_another_convention_are_told(tmp_path: Path) -> None:
    table = read_runs(write(tmp_path, "N,D,C,loss\n1e7,2e8,2.4e16,4.5\n2e7,2e8,2.4e16,4.4\n"))
    assert table.flops == (2.4e16, 2.4e16)
    assert [one.tokens for one in table.points] == [2e8, 2e8]
    (note,) = table.notes
    assert note.startswith("in 1 rows the FLOPs differ from 6·N·D by more than 50%")


def test_unfinished_and_repeated_rows_are_passed_over(tmp_path: Path) -> None:
    rows = ["1e7,2e8,6,4.5", "1e7,2e8,6,", "1e7,2e8,6,nan", "1e7,2e8,6,inf", "1e7,2e8,6,4.5",
            "1e7,2e8,6,4.6", "", ",,,"]  # fmt: skip
    table = read_runs(write(tmp_path, "n_params,tokens,seed,loss\n" + "\n".join(rows) + "\n"))
    # Another loss of the same size and tokens is another seed's.
    assert [one.loss_nats for one in table.points] == [4.5, 4.6]
    assert "3 rows passed over: their loss is empty or not finite" in table.notes
    assert "1 rows passed over: they repeat another one" in table.notes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file is empty; expected columns n_params"),
        ("N,D\n1,2\n", "no column val_loss_nats"),
        ("N,loss\n1,2\n", "fewer than two of n_params, tokens and train_flops"),
        ("N,D,loss\n", "no finished run in it"),
        ("N,D,loss\n1e7,2e8,\n", "no finished run in it"),
        ("N,D,loss\n1e7,2e8,4.5\n1e7,-2e8,4.5\n", "line 3: D = -2e+08; expected a number above 0"),
        ("N,D,loss\n1e7,0,4.5\n", "line 2: D = 0; expected a number above 0"),
        ("N,D,loss\n1e7,nan,4.5\n", "line 2: D = nan; expected a finite number"),
        ("N,D,loss\n1e7,2e8,-4.5\n", "line 2: loss = -4.5; expected nats above 0"),
        ("N,D,loss\n1e7,2e8,?\n", "line 2: loss = '?'; expected a number"),
        ("N,D,loss\n1e7,,4.5\n", "line 2: D is empty; two of N, D and C are needed"),
        ("N,D,C,loss\n,,1e16,4.5\n", "line 2: N is empty; two of N, D and C are needed"),
        ("N,D,loss,lr\n1e7,2e8,4.5,0\n", "line 2: lr = 0; expected a number above 0"),
        ("N,D,D,loss\n1e7,2e8,2e8,4.5\n", "line 1: column 'D' stands there twice"),
        ("N,D,loss,stderr_nats\n1e7,2e8,4.5,-1\n", "line 2: stderr_nats = -1; expected 0 or above"),
    ],
)
def test_mistakes(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(DataError) as caught:
        read_runs(path)
    assert str(caught.value).startswith(str(path))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
