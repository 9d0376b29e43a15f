"""What the learning curves say: verdicts, evidence, steps that suffice."""

from __future__ import annotations

from budgetsweep.formats import DASH, plural
from reports.document import Table, Text
from reports.facts import Facts
from studies.database.tables import Run
from studies.diagnosis.steps import steps_sentences
from studies.diagnosis.verdicts import CURES, HEALTHY, LABELS, NAMES, Diagnosis

MOST_NUMBERS = 8


def curves(facts: Facts) -> list[Text | Table]:
    """What the curves of the best trial, the promotions and all trials say."""
    if not facts.diagnoses:
        return [Text("No run has ended with a learning curve: nothing to judge.")]
    blocks: list[Text | Table] = [Text(_counts(facts)), *_problems(facts)]
    shown = [run for run in (facts.best, *facts.promotions) if run and run.id in facts.diagnoses]
    if shown:
        rows = [row for run in shown for row in _rows(run, facts.diagnoses[run.id])]
        head = ["run", "verdict", "evidence, and what to do"]
        blocks.append(Table(head, rows, caption="The runs that matter most", wide_text=True))
    for run in shown:
        sentences = " ".join(steps_sentences(facts.diagnoses[run.id].steps))
        if sentences:
            blocks.append(Text(sentences, f"How many steps suffice? {_name(run)}:"))
    return blocks


def verdict_names(facts: Facts, run: Run) -> list[str]:
    """Names of the verdicts on a run; none where it was not judged."""
    found = facts.diagnoses.get(run.id)
    return [] if found is None else [verdict.name for verdict in found.verdicts]


def _counts(facts: Facts) -> str:
    ended = [run for run in facts.trials if run.id in facts.diagnoses]
    judged = [run for run in ended if verdict_names(facts, run)]
    healthy = sum(facts.diagnoses[run.id].is_healthy for run in judged)
    if not judged:
        return "No trial has points enough for a verdict on its curve."
    text = (
        f"Of {plural(len(judged), 'trial')} that completed or diverged (NaN), {healthy} "
        f"{'has a healthy curve' if healthy == 1 else 'have healthy curves'}."
    )
    if len(judged) < len(ended):
        text += f" {len(ended) - len(judged)} more have too few points to judge."
    return text


def _problems(facts: Facts) -> list[Table]:
    trials: dict[str, list[Run]] = {}
    for run in facts.trials:
        for name in verdict_names(facts, run):
            trials.setdefault(name, []).append(run)
    rows = []
    for name in NAMES:
        these = trials.get(name, [])
        if these and name != HEALTHY:
            numbers = [str(run.number) for run in these[:MOST_NUMBERS]]
            numbers += ["…"] if len(these) > MOST_NUMBERS else []
            rows.append([LABELS[name], str(len(these)), ", ".join(numbers), CURES[name]])
    head = ["problem", "trials", "which", "what to do"]
    caption = "Detected problems (a curve may have several)"
    return [Table(head, rows, caption=caption, wide_text=True)] if rows else []


def _rows(run: Run, found: Diagnosis) -> list[list[str]]:
    if not found.verdicts:
        return [[_name(run), DASH, "; ".join(found.unseen)]]
    return [
        [_name(run), v.label, v.evidence + ("" if v.name == HEALTHY else f". To do: {v.cure}")]
        for v in found.verdicts
    ]


def _name(run: Run) -> str:
    return f"{run.kind} {run.number}"
