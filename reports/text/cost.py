"""What the study cost: FLOPs from the ledger, tokens, time, device."""

from __future__ import annotations

import math

from budgetsweep.formats import count, duration, flops, known, percent, plural
from model.flops import Convention
from reports.document import Table, Text
from reports.facts import Facts
from studies.database.ledger import Amount, Spending
from studies.database.tables import Run


def cost(facts: Facts) -> list[Text | Table]:
    """FLOPs from the ledger, tokens, time, device."""
    groups = [("trials", facts.trials)]
    if facts.promotions:
        groups.append((plural(len(facts.promotions), "promotion"), facts.promotions))
        groups.append(("total", [*facts.trials, *facts.promotions]))
    if not facts.data.runs:
        return [Text("The ledger has no entry: nothing was planned and nothing spent.")]
    convention, total = facts.study.convention, facts.spending(facts.data.runs)
    return [
        Text(_sentences(facts, total)),
        Table(
            ["", "FLOPs planned", "spent", "recomputed", "tokens spent", "training", "evaluation"],
            [[name, *_cells(facts, runs)] for name, runs in groups],
            caption=f"From the ledger, in the budget's convention ({convention})",
        ),
        Table(
            ["convention", "planned", "spent", "recomputed"],
            [
                [
                    name + (" (budget)" if name == convention else ""),
                    *(f"{amount.flops(name):,}" for amount in _amounts(total)),
                ]
                for name in Convention
            ],
            caption="All runs, in each way of counting, exact",
        ),
    ]


def _amounts(spending: Spending) -> tuple[Amount, Amount, Amount]:
    return spending.planned, spending.spent, spending.recomputed


def _sentences(facts: Facts, total: Spending) -> str:
    convention = facts.study.convention
    charged, tokens = total.spent.flops(convention), count(total.spent.tokens)
    parts = [f"{flops(charged, 4)} training FLOPs ({convention}) and {tokens} tokens"]
    if known(facts.wall_seconds):
        parts[0] += f" in {duration(facts.wall_seconds)} from the first start to the last finish"
    ended = all(run.status.is_finished for run in facts.data.runs)
    parts[0] += "." if ended else " so far."
    if total.recomputed.steps:
        recomputed = total.recomputed.flops(convention)
        parts.append(f"{percent(recomputed / charged)} of it was recomputed after interruptions.")
    shares = [run.planned_flops(convention) / run.budget_flops for run in facts.data.runs]
    over = sum(share > 1 for share in shares)
    if over:
        runs = plural(over, "run")
        parts.append(f"{runs} planned more than the budget: that must not happen.")
    else:
        most = percent(max(shares), 2)
        parts.append(f"No run planned more than its budget; the fullest used {most} of it.")
    devices = sorted({_device(run) for run in facts.data.runs if run.device_name})
    parts.append(f"Device: {'; '.join(devices) or 'not recorded'}.")
    return " ".join(parts)


def _device(run: Run) -> str:
    extra = [run.precision or "", "compiled" if run.compiled else ""]
    details = ", ".join(part for part in extra if part)
    return f"{run.device_name} ({details})" if details else str(run.device_name)


def _cells(facts: Facts, runs: list[Run]) -> list[str]:
    spending = facts.spending(runs)
    training = [run.train_seconds for run in runs if known(run.train_seconds)]
    evaluation = [run.eval_seconds for run in runs if known(run.eval_seconds)]
    return [
        *(flops(amount.flops(facts.study.convention), 4) for amount in _amounts(spending)),
        count(spending.spent.tokens),
        duration(math.fsum(training) if training else None),
        duration(math.fsum(evaluation) if evaluation else None),
    ]
