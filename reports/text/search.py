"""The sentences of the report: what was tried, rejected, failed, promoted, and where it is from."""

from __future__ import annotations

from collections import Counter
from statistics import median

from reports.document import Bullets, Table, Text
from reports.facts import BEST_FEW, Facts, tokens_per_param
from reports.style.formats import (
    DASH,
    count,
    duration,
    known,
    loss,
    memory,
    moment,
    percent,
    perplexity,
    plural,
    rate,
    setting,
    short,
    times,
)
from studies.database.tables import Run
from studies.space.search_space import Parameter
from trainer.events import RunStatus

MOST_EXAMPLES = 10

REASONS = {
    "over_budget": "over the budget",
    "invalid_shape": "impossible shape",
    "invalid_value": "impossible value",
    "out_of_memory": "does not fit in memory",
    "too_little_validation_data": "too little validation text",
    "too_many_epochs": "repeats the text too often",
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
    told = ", ".join(f"{state[status]} {status}" for status in order if state[status])
    parts = [
        f"{plural(facts.n_proposals, 'proposal').capitalize()} by the {study.sampler} sampler "
        f"(seed {study.seed}): {len(facts.trials)} admitted" + (f" ({told})" if told else "")
        + f", {len(facts.rejections)} rejected."
    ]  # fmt: skip
    if facts.first is not None:
        parts.append(f"The first to be admitted, trial {facts.first.number}, is the point to beat.")
    rows = [_space_row(name, entry, facts) for name, entry in facts.parameters.items()]
    table = Table(["parameter", "space", "tried", "best"], rows, caption="Search space")
    return [Text(" ".join(parts)), table] if rows else [Text(" ".join(parts))]


def _space_row(name: str, entry: Parameter, facts: Facts) -> list[str]:
    if entry.is_fixed:
        return [name, space_in_words(entry), "", ""]
    values = [run.params[name] for run in facts.trials if name in run.params]
    spread = DASH
    if values:
        numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
        if len(numbers) == len(values):
            low, high = setting(min(numbers)), setting(max(numbers))
            spread = low if low == high else f"{low} … {high}"
        else:
            spread = ", ".join(sorted({setting(value) for value in values}))
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
    few = facts.ranked[:BEST_FEW]
    if not few:
        return []
    first = facts.first
    assert first is not None
    columns = few if first in few else [first, *few]
    head = [""]
    for run in columns:
        place = f"#{few.index(run) + 1} " if run in few else ""
        note = " (first)" if run is first else ""
        head.append(f"{place}trial {run.number}{note}")
    rows = [
        ["validation loss", *(loss(run.val_loss_nats) for run in columns)],
        ["perplexity", *(perplexity(run.val_ppl) for run in columns)],
        ["bits per byte", *(loss(run.val_bits_per_byte, 3) for run in columns)],
        ["parameters", *(short(run.n_params) for run in columns)],
        ["tokens", *(short(run.planned_tokens) for run in columns)],
        ["tokens a parameter", *(f"{tokens_per_param(run):.3g}" for run in columns)],
        ["steps", *(count(run.num_steps) for run in columns)],
    ]
    strong = set()
    for name in facts.varied:
        for column, run in enumerate(columns, start=1):
            if run.params.get(name) != first.params.get(name):
                strong.add((len(rows), column))
        rows.append([name, *(setting(run.params.get(name)) for run in columns)])
    text = Text(
        f"The best {len(few)} beside the first proposal (trial {first.number}); in bold what each "
        "changed from it."
        if len(few) > 1 or first not in few
        else "One complete trial, the first proposal: nothing to compare it with yet."
    )
    return [text, Table(head, rows, frozenset(strong))]


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
    return [
        text,
        Table(["reason", "proposals", "of the limit, typically", "at most", "example"], rows,
              wide_text=True),
    ]  # fmt: skip


def failed(facts: Facts) -> list[Text | Bullets]:
    """Runs that failed or were pruned, with their reasons."""
    bad = [run for run in facts.data.runs if run.status == "failed"]
    pruned = [run for run in facts.data.runs if run.status == "pruned"]
    blocks: list[Text | Bullets] = []
    if not bad:
        blocks.append(Text("No run failed."))
    else:
        blocks.append(Text(f"{plural(len(bad), 'run').capitalize()} failed:"))
        items = [
            Text(run.reason or "no reason was recorded", f"{run.kind.capitalize()} {run.number}:")
            for run in bad[:MOST_EXAMPLES]
        ]
        if len(bad) > MOST_EXAMPLES:
            items.append(Text(f"and {len(bad) - MOST_EXAMPLES} more; all are in data.csv."))
        blocks.append(Bullets(items))
    if pruned:
        one = len(pruned) == 1
        blocks.append(
            Text(
                f"{plural(len(pruned), 'trial').capitalize()} {'was' if one else 'were'} stopped "
                f"early by the pruner; {'its loss is' if one else 'their losses are'} not compared "
                "with those of complete trials."
            )
        )
    return blocks


# ── promotion, provenance ────────────────────────────────────────────────────────────────────


def promotion(facts: Facts) -> list[Text | Table]:
    """What the larger budget brought."""
    if not facts.promotions:
        return [Text("Nothing has been promoted yet.")]
    blocks: list[Text | Table] = []
    for run in facts.promotions:
        parent = facts.trial_of(run)
        blocks.append(Text(_promotion_sentence(run, parent), f"Promotion {run.number}:"))
        blocks.append(_promotion_table(run, parent))
    return blocks


def _promotion_sentence(run: Run, parent: Run | None) -> str:
    origin = f"trial {parent.number}" if parent is not None else "a trial that is not recorded"
    plan = (
        f"the shape of {origin} with {run.scale or 0:g} times the budget, "
        f"{short(run.planned_tokens)} tokens"
    )
    if known(run.epochs):
        passes = f"{run.epochs:.3g}"
        plan += f" ({passes} {'pass' if passes == '1' else 'passes'} over the training text)"
    if run.status == "complete" and known(run.val_loss_nats):
        text = f"{plan}: validation loss {loss(run.val_loss_nats)} nats, perplexity "
        text += perplexity(run.val_ppl)
        if parent is not None and known(parent.val_loss_nats):
            gain = parent.val_loss_nats - run.val_loss_nats
            word = "below" if gain >= 0 else "ABOVE"
            text += f", {loss(abs(gain), 3)} nats {word} its trial"
        return text + "."
    share = run.step / run.num_steps
    if run.status == "failed":
        return f"{plan}. It failed after {percent(share)}: {run.reason or 'no reason recorded'}."
    return f"{plan}. It is {run.status}, {percent(share)} done; its loss is not known yet."


def _promotion_table(run: Run, parent: Run | None) -> Table:
    ratio = run.planned_tokens / parent.planned_tokens if parent is not None else None

    def row(name: str, before: str, after: str) -> list[str]:
        return [name, before if parent is not None else DASH, after]

    p = parent or run
    rows = [
        row("status", p.status, run.status),
        row("validation loss", loss(p.val_loss_nats), loss(run.val_loss_nats)),
        row("perplexity", perplexity(p.val_ppl), perplexity(run.val_ppl)),
        row("bits per byte", loss(p.val_bits_per_byte, 3), loss(run.val_bits_per_byte, 3)),
        row("tokens", short(p.planned_tokens), f"{short(run.planned_tokens)} ({times(ratio)})"),
        row("tokens a parameter", f"{tokens_per_param(p):.3g}", f"{tokens_per_param(run):.3g}"),
        row("training time", duration(p.train_seconds), duration(run.train_seconds)),
    ]
    rows += [
        row(name, setting(p.config.get(name)), setting(value)) for name, value in run.params.items()
    ]
    head = ["", f"trial {p.number}" if parent is not None else "trial", f"{run.kind} {run.number}"]
    return Table(head, rows)


def provenance(facts: Facts) -> Table:
    """Where the figures come from, so that they can be made again."""
    study = facts.study
    shown = facts.best or facts.first
    rows = [
        ["study", study.name],
        ["begun", moment(study.created_utc)],
        ["budget of a trial", f"{count(study.budget_flops)} FLOPs ({study.convention})"],
        ["text", study.data_description or DASH],
        ["checksum of the training text", study.data_checksum or DASH],
        ["checksum of the validation text", study.val_checksum or DASH],
        ["validation tokens", count(study.val_tokens)],
        ["bytes a token", rate(study.bytes_per_token)],
    ]
    if shown is not None:
        versions = ", ".join(f"{name} {version}" for name, version in shown.versions.items())
        rows += [
            [f"trial {shown.number}: git commit", shown.git_commit or DASH],
            ["versions", versions or DASH],
            ["peak memory", f"{memory(shown.peak_memory_bytes)} "
             f"(estimated {memory(shown.estimated_memory_bytes)})"],
        ]  # fmt: skip
    if facts.data.other_studies:
        rows.append(["other studies in the database", ", ".join(facts.data.other_studies)])
    return Table(["", ""], rows, wide_text=True)
