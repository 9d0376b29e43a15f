"""The sentences of the report about learning curves: verdicts, evidence, steps that suffice."""

from __future__ import annotations

from reports.document import Table, Text
from reports.facts import Facts
from reports.style.formats import DASH, plural
from studies.database.tables import Run
from studies.diagnosis import CURES, HEALTHY, LABELS, NAMES, Diagnosis
from studies.diagnosis.steps import steps_sentences
from studies.simulation.worlds import is_replayed

MOST_NUMBERS = 8


def curves(facts: Facts) -> list[Text | Table]:
    """What the curves of the best trial, the promotions and all trials say."""
    if is_replayed(facts.world):
        return [Text("A table of finished runs has no curves.")]
    if not facts.diagnoses:
        return [Text("No run has ended yet: no curve to judge.")]
    blocks: list[Text | Table] = [Text(_counts(facts)), *_accused(facts)]
    shown = [run for run in (facts.best, *facts.promotions) if run and run.id in facts.diagnoses]
    if shown:
        rows = [row for run in shown for row in _rows(run, facts.diagnoses[run.id])]
        head = ["run", "verdict", "evidence, and what to do"]
        blocks.append(Table(head, rows, caption="The runs that matter most", wide_text=True))
    for run in shown:
        said = " ".join(steps_sentences(facts.diagnoses[run.id].steps))
        if said:
            blocks.append(Text(said, f"How many steps suffice? {_name(run)}:"))
    return blocks


def verdict_names(facts: Facts, run: Run) -> list[str]:
    """Names of the verdicts on a run; none where it was not judged."""
    found = facts.diagnoses.get(run.id)
    return [] if found is None else [verdict.name for verdict in found.verdicts]


def _counts(facts: Facts) -> str:
    judged = [run for run in facts.trials if run.id in facts.diagnoses]
    known = [run for run in judged if verdict_names(facts, run)]
    sound = sum(facts.diagnoses[run.id].is_healthy for run in judged)
    if not known:
        return "No trial has points enough for a verdict on its curve."
    text = (
        f"Of {plural(len(known), 'trial')} that ended, complete or with a loss that was no number, "
        f"{sound} {'has a healthy curve' if sound == 1 else 'have healthy curves'}."
    )
    if len(known) < len(judged):
        text += f" {len(judged) - len(known)} more have too few points to judge."
    return text


def _accused(facts: Facts) -> list[Table]:
    trials: dict[str, list[Run]] = {}
    for run in facts.trials:
        for name in verdict_names(facts, run):
            trials.setdefault(name, []).append(run)
    rows = []
    for name in NAMES:
        these = trials.get(name, [])
        if not these or name == HEALTHY:
            continue
        numbers = ", ".join(str(run.number) for run in these[:MOST_NUMBERS])
        if len(these) > MOST_NUMBERS:
            numbers += ", …"
        rows.append([LABELS[name], str(len(these)), numbers, CURES[name]])
    if not rows:
        return []
    head = ["verdict", "trials", "which", "what to do"]
    caption = "What curves of trials are accused of (a curve may have several verdicts)"
    return [Table(head, rows, caption=caption, wide_text=True)]


def _rows(run: Run, found: Diagnosis) -> list[list[str]]:
    if not found.verdicts:
        return [[_name(run), DASH, "; ".join(found.unseen)]]
    return [
        [_name(run), v.label, v.evidence + ("" if v.name == HEALTHY else f". To do: {v.cure}")]
        for v in found.verdicts
    ]


def _name(run: Run) -> str:
    return f"{run.kind} {run.number}"
