"""What the larger budget brought."""

from __future__ import annotations

from budgetsweep.formats import (
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


def _sentence(run: Run, parent: Run) -> str:
    plan = (
        f"the shape of trial {parent.number} with {run.scale or 0:g} times the budget, "
        f"{count(run.planned_tokens)} tokens"
    )
    if known(run.epochs):
        number = f"{run.epochs:.3g}"
        plan += f" ({number} epoch{'' if number == '1' else 's'} of the training data)"
    if run.status == RunStatus.COMPLETE and known(run.val_loss_nats):
        text = f"{plan}: validation loss {loss(run.val_loss_nats)} nats, perplexity "
        text += perplexity(run.val_ppl)
        if known(parent.val_loss_nats):
            gain = parent.val_loss_nats - run.val_loss_nats
            word = "below" if gain >= 0 else "ABOVE"
            text += f", {loss(abs(gain), 3)} nats {word} its trial"
        return text + "."
    share = percent(run.step / run.num_steps)
    if run.status == RunStatus.FAILED:
        return f"{plan}. It failed after {share}: {run.reason or 'no reason recorded'}."
    return f"{plan}. It is {run.status}, {share} done; its loss is not known yet."


def _table(run: Run, trial: Run) -> Table:
    ratio = times(run.planned_tokens / trial.planned_tokens)
    rows = [
        ["status", trial.status, run.status],
        ["validation loss", loss(trial.val_loss_nats), loss(run.val_loss_nats)],
        ["perplexity", perplexity(trial.val_ppl), perplexity(run.val_ppl)],
        ["bits per byte", loss(trial.val_bits_per_byte, 3), loss(run.val_bits_per_byte, 3)],
        ["tokens", count(trial.planned_tokens), f"{count(run.planned_tokens)} ({ratio})"],
        ["tokens per parameter", f"{tokens_per_param(trial):.3g}", f"{tokens_per_param(run):.3g}"],
        ["training time", duration(trial.train_seconds), duration(run.train_seconds)],
    ]
    rows += [
        [name, setting(trial.config.get(name)), setting(value)]
        for name, value in run.params.items()
    ]
    return Table(["", f"trial {trial.number}", f"promotion {run.number}"], rows)
