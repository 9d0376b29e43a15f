"""What the larger budget brought."""

from __future__ import annotations

from budgetsweep.formats import (
    DASH,
    count,
    duration,
    known,
    loss,
    percent,
    perplexity,
    setting,
    times,
)
from reports.document import Table, Text
from reports.facts import Facts, tokens_per_param
from studies.database.tables import Run
from trainer.events import RunStatus


def promotions(facts: Facts) -> list[Text | Table]:
    """Each promotion beside its trial."""
    if not facts.promotions:
        return [Text("Nothing has been promoted yet.")]
    blocks: list[Text | Table] = [
        Text("A promotion is the final run: a trial's shape, trained once more at a larger budget.")
    ]
    for run in facts.promotions:
        parent = facts.trial_of(run)
        blocks.append(Text(_sentence(run, parent), f"Promotion {run.number}:"))
        blocks.append(_table(run, parent))
    return blocks


def _sentence(run: Run, parent: Run | None) -> str:
    origin = f"trial {parent.number}" if parent is not None else "a trial that is not recorded"
    plan = (
        f"the shape of {origin} with {run.scale or 0:g} times the budget, "
        f"{count(run.planned_tokens)} tokens"
    )
    if known(run.epochs):
        number = f"{run.epochs:.3g}"
        plan += f" ({number} epoch{'' if number == '1' else 's'} of the training data)"
    if run.status == RunStatus.COMPLETE and known(run.val_loss_nats):
        text = f"{plan}: validation loss {loss(run.val_loss_nats)} nats, perplexity "
        text += perplexity(run.val_ppl)
        if parent is not None and known(parent.val_loss_nats):
            gain = parent.val_loss_nats - run.val_loss_nats
            word = "below" if gain >= 0 else "ABOVE"
            text += f", {loss(abs(gain), 3)} nats {word} its trial"
        return text + "."
    share = percent(run.step / run.num_steps)
    if run.status == RunStatus.FAILED:
        return f"{plan}. It failed after {share}: {run.reason or 'no reason recorded'}."
    return f"{plan}. It is {run.status}, {share} done; its loss is not known yet."


def _table(run: Run, parent: Run | None) -> Table:
    ratio = run.planned_tokens / parent.planned_tokens if parent is not None else None

    def row(name: str, before: str, after: str) -> list[str]:
        return [name, before if parent is not None else DASH, after]

    p = parent or run
    rows = [
        row("status", p.status, run.status),
        row("validation loss", loss(p.val_loss_nats), loss(run.val_loss_nats)),
        row("perplexity", perplexity(p.val_ppl), perplexity(run.val_ppl)),
        row("bits per byte", loss(p.val_bits_per_byte, 3), loss(run.val_bits_per_byte, 3)),
        row("tokens", count(p.planned_tokens), f"{count(run.planned_tokens)} ({times(ratio)})"),
        row("tokens per parameter", f"{tokens_per_param(p):.3g}", f"{tokens_per_param(run):.3g}"),
        row("training time", duration(p.train_seconds), duration(run.train_seconds)),
    ]
    rows += [
        row(name, setting(p.config.get(name)), setting(value)) for name, value in run.params.items()
    ]
    head = ["", f"trial {p.number}" if parent is not None else "trial", f"promotion {run.number}"]
    return Table(head, rows)
