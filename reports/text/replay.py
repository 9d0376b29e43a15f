"""What the report of a replayed study says otherwise: which runs of the table were replayed."""

from __future__ import annotations

from reports.document import Table, Text
from reports.facts import Facts
from reports.style.formats import loss, perplexity, short
from studies.database.tables import Run
from studies.simulation.worlds import is_replayed

UNKNOWN = frozenset({"learning_curves", "learning_rate", "parallel", "schedule", "lr_optimum"})
"""Figures of what no table tells: curves, rates, settings beside the size."""


def hidden(facts: Facts) -> frozenset[str]:
    """Figures that have nothing to show of a study; none of another one's."""
    return UNKNOWN if is_replayed(facts.world) else frozenset()


def winner(facts: Facts, best: Run) -> Text:
    """What was best: a size of the table."""
    return Text(
        f"is the best of {len(facts.ranked)} complete trials at this budget: "
        f"{loss(best.val_loss_nats)} nats a token, perplexity {perplexity(best.val_ppl)}, with "
        f"{short(best.n_params)} parameters and {short(best.planned_tokens)} tokens. It "
        f"{best.reason}. Its shape, batch and rates are not known.",
        f"Trial {best.number}",
    )  # fmt: skip


def stand_ins(facts: Facts) -> list[Table]:
    """Which run of the table each run stands for; nothing where runs were trained."""
    if not is_replayed(facts.world):
        return []
    rows = [
        [f"{run.kind} {run.number}", loss(run.val_loss_nats), (run.reason or "")]
        for run in (*facts.trials, *facts.promotions)
        if run.status == "complete"
    ]
    head = ["run", "validation loss", "of the table"]
    return [Table(head, rows, caption="The runs of the table that were replayed", wide_text=True)]
