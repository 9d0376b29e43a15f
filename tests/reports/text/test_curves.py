"""The report's section about learning curves."""

from __future__ import annotations

from sqlalchemy import select

from reports.build import data_table
from reports.document import Table, Text
from reports.text import curves as text_curves
from studies.database.tables import PointRow
from studies.diagnosis.verdicts import LABELS


def spiking(*numbers):
    """A change of a study: the loss of some trials leaps once."""

    def change(session, runs):
        for run in runs:
            if run.kind == "trial" and run.number in numbers:
                points = session.scalars(select(PointRow).where(PointRow.run_id == run.id)).all()
                points[len(points) // 3].train_loss_nats += 5.0

    return change


def tables(blocks):
    return {block.caption: block for block in blocks if isinstance(block, Table)}


def test_verdicts_are_counted_and_told_with_their_trials(study):
    facts = study(spiking(1, 3), points=40, failed=1)
    blocks = text_curves.curves(facts)
    assert isinstance(blocks[0], Text)
    assert "Of 6 trials that completed or diverged (NaN), 3 have" in (blocks[0].text)
    (detected,) = [t for caption, t in tables(blocks).items() if "problems" in caption]
    failed = next(run.number for run in facts.trials if run.status == "failed")
    numbers = ", ".join(str(n) for n in sorted({1, 3, failed}))
    assert detected.rows[0][:3] == [LABELS["lr_too_high"], "3", numbers]
    assert facts.best is not None
    rows = tables(blocks)["The runs that matter most"].rows
    assert rows[0][0] == f"trial {facts.best.number}"
    assert any("steps suffice" in b.lead for b in blocks if isinstance(b, Text))


def test_the_promotion_is_judged_and_the_table_of_data_has_the_verdicts(study):
    facts = study(spiking(1), points=40, promotion="complete")
    rows = tables(text_curves.curves(facts))["The runs that matter most"].rows
    assert [row[0] for row in rows][1:] == ["promotion 0"]
    head, *lines = data_table(facts).splitlines()
    column = head.split(",").index("verdicts")
    assert {line.split(",")[column] for line in lines} == {"lr_too_high", "healthy"}


def test_a_run_that_failed_for_want_of_memory_is_not_judged(study):
    def change(session, runs):
        for run in runs:
            if run.status == "failed":
                run.reason = "out of memory after step 3: no memory left"

    facts = study(change, points=40, failed=1)
    assert len(facts.diagnoses) == 5
    assert "Of 5 trials that completed" in text_curves.curves(facts)[0].text


def test_curves_too_short_are_not_judged(study):
    few = text_curves.curves(study(points=4, evals=2))
    assert "No trial has points enough" in few[0].text


def test_runs_that_have_not_ended_are_not_judged(study):
    nothing = text_curves.curves(study(trials=2, unfinished=2))
    assert len(nothing) == 1
    assert "nothing to judge" in nothing[0].text
