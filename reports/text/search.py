"""What was tried, what was rejected, and what failed."""

from __future__ import annotations

from collections import Counter
from statistics import median

from budgetsweep.formats import (
    DASH,
    count,
    known,
    loss,
    percent,
    perplexity,
    plural,
    setting,
    times,
    whole,
)
from reports.document import Bullets, Table, Text
from reports.facts import BEST_FEW, Facts, as_number, tokens_per_param
from studies.space.search_space import Parameter
from trainer.events import RunStatus

MOST_EXAMPLES = 10

REASONS = {
    "over_budget": "over the budget",
    "invalid_shape": "impossible shape",
    "invalid_value": "impossible value",
    "out_of_memory": "does not fit in memory",
    "too_little_validation_data": "too little validation data",
    "too_many_epochs": "too many epochs",
    "duplicate": "was tried before",
    "no_run": "no run of the table is near it",
}
"""`budgetsweep.constraint.Reason` in words."""


# ── what was tried ───────────────────────────────────────────────────────────────────────────


def tried(facts: Facts) -> list[Text | Table]:
    """The proposals, the space, and how far the trials spread in it."""
    study = facts.study
    state = Counter(run.status for run in facts.trials)
    order = (
        RunStatus.COMPLETE, RunStatus.RUNNING, RunStatus.INTERRUPTED, RunStatus.QUEUED,
        RunStatus.PRUNED, RunStatus.FAILED,
    )  # fmt: skip
    states = ", ".join(f"{state[status]} {status}" for status in order if state[status])
    parts = [
        f"{plural(facts.n_proposals, 'proposal').capitalize()} by the {study.sampler} sampler "
        f"(seed {study.seed}): {len(facts.trials)} admitted{f' ({states})' if states else ''}, "
        f"{len(facts.rejections)} rejected."
    ]
    if facts.first is not None:
        parts.append(f"Trial {facts.first.number}, the first to be admitted, is the baseline.")
    levels = sorted({run.scale for run in facts.trials if run.scale is not None})
    if len(levels) > 1:
        parts.append(
            f"Trials ran at {len(levels)} budget levels (--rungs): "
            f"{', '.join(f'{level:g}' for level in levels)} times the budget. Only those at the "
            "whole budget are ranked; the others serve the scaling law."
        )
    rows = [_space_row(name, entry, facts) for name, entry in facts.parameters.items()]
    table = Table(["parameter", "space", "tried", "best"], rows, caption="Search space")
    return [Text(" ".join(parts)), table] if rows else [Text(" ".join(parts))]


def _space_row(name: str, entry: Parameter, facts: Facts) -> list[str]:
    if entry.is_fixed:
        return [name, space_in_words(entry), "", ""]
    values = [run.params[name] for run in facts.trials if name in run.params]
    numbers = [number for value in values if (number := as_number(value)) is not None]
    if not values:
        spread = DASH
    elif len(numbers) < len(values):
        spread = ", ".join(sorted({setting(value) for value in values}))
    else:
        low, high = setting(min(values)), setting(max(values))
        spread = low if low == high else f"{low} … {high}"
    chosen = facts.best.params.get(name) if facts.best is not None else None
    return [name, space_in_words(entry), spread, setting(chosen)]


def space_in_words(entry: Parameter) -> str:
    """What one parameter may be."""
    if entry.is_fixed:
        return f"{setting(entry.value)} (fixed)"
    if entry.values is not None:
        return ", ".join(setting(value) for value in entry.values)
    text = f"{setting(entry.min)} … {setting(entry.max)}"
    if entry.stride is not None:
        text += f" in steps of {setting(entry.stride)}"
    return text + (", log" if entry.is_log else "")


def best_few(facts: Facts) -> list[Text | Table]:
    """The best five side by side, with what each changed from the first proposal."""
    few, first = facts.ranked[:BEST_FEW], facts.first
    if not few or first is None:
        return []
    columns = few if first in few else [first, *few]
    head = [""]
    for run in columns:
        place = f"#{few.index(run) + 1} " if run in few else ""
        head.append(f"{place}trial {run.number}{' (first)' if run is first else ''}")
    rows = [
        ["validation loss", *(loss(run.val_loss_nats) for run in columns)],
        ["perplexity", *(perplexity(run.val_ppl) for run in columns)],
        ["bits per byte", *(loss(run.val_bits_per_byte, 3) for run in columns)],
        ["parameters", *(count(run.n_params) for run in columns)],
        ["tokens", *(count(run.planned_tokens) for run in columns)],
        ["tokens per parameter", *(f"{tokens_per_param(run):.3g}" for run in columns)],
        ["steps", *(whole(run.num_steps) for run in columns)],
    ]
    strong = set()
    for name in facts.varied:
        for column, run in enumerate(columns, start=1):
            if run.params.get(name) != first.params.get(name):
                strong.add((len(rows), column))
        rows.append([name, *(setting(run.params.get(name)) for run in columns)])
    text = "One complete trial, the first proposal: nothing to compare it with yet."
    if columns[1:]:
        text = (
            f"The best {len(few)} beside the first proposal (trial {first.number}); in bold what "
            "each changed from it."
        )
    return [Text(text), Table(head, rows, frozenset(strong))]


def remarks(facts: Facts) -> list[Table]:
    """What complete runs say of themselves: where a loss is not of a training run, whose it is."""
    rows = [
        [f"{run.kind} {run.number}", loss(run.val_loss_nats), run.reason]
        for run in (*facts.trials, *facts.promotions)
        if run.status == RunStatus.COMPLETE and run.reason
    ]
    head = ["run", "validation loss", "remark"]
    return [Table(head, rows, caption="Where losses come from", wide_text=True)] if rows else []


# ── rejections, failures ─────────────────────────────────────────────────────────────────────


def rejected(facts: Facts) -> list[Text | Table]:
    """Why proposals were refused, by how much, with an example of each reason."""
    if not facts.rejections:
        return [Text("No proposal was rejected.")]
    share = len(facts.rejections) / facts.n_proposals
    text = Text(
        f"{len(facts.rejections)} of {plural(facts.n_proposals, 'proposal')} ({percent(share)}) "
        "were refused before they cost a trial."
    )
    rows = []
    for reason, number in Counter(r.reason for r in facts.rejections).most_common():
        these = [r for r in facts.rejections if r.reason == reason]
        excesses = [r.excess for r in these if known(r.excess)]
        rows.append(
            [
                REASONS.get(reason, reason),
                str(number),
                times(median(excesses)) if excesses else DASH,
                times(max(excesses)) if excesses else DASH,
                f"{these[0].detail} (proposal {these[0].number})",
            ]
        )
    head = ["reason", "proposals", "of the limit (median)", "max", "example"]
    return [text, Table(head, rows, wide_text=True)]


def failed(facts: Facts) -> list[Text | Bullets]:
    """Runs that failed or were pruned, with their reasons."""
    bad = [run for run in facts.data.runs if run.status == RunStatus.FAILED]
    pruned = sum(run.status == RunStatus.PRUNED for run in facts.data.runs)
    blocks: list[Text | Bullets] = [Text("No run failed.")]
    if bad:
        items = [
            Text(run.reason or "no reason was recorded", f"{run.kind.capitalize()} {run.number}:")
            for run in bad[:MOST_EXAMPLES]
        ]
        if len(bad) > MOST_EXAMPLES:
            items.append(Text(f"and {len(bad) - MOST_EXAMPLES} more; all are in data.csv."))
        blocks = [Text(f"{plural(len(bad), 'run')} failed:"), Bullets(items)]
    if pruned:
        blocks.append(
            Text(
                f"Stopped early by the pruner: {plural(pruned, 'trial')}. Their losses are not "
                "compared with those of complete trials."
            )
        )
    return blocks
