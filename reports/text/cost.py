"""What the study cost: FLOPs from the ledger, tokens, time, device."""

from __future__ import annotations

from budgetsweep.formats import DASH, count, duration, flops, known, percent, plural
from model.flops import Convention
from reports.document import Table, Text
from reports.facts import Costs, Facts
from studies.database.ledger import Amount
from studies.database.tables import Run


def cost(facts: Facts) -> list[Text | Table]:
    """FLOPs from the ledger, tokens, time, device."""
    groups = [("trials", facts.trials)]
    if facts.promotions:
        groups.append((plural(len(facts.promotions), "promotion"), facts.promotions))
        groups.append(("total", [*facts.trials, *facts.promotions]))
    costs = [(name, facts.costs(runs)) for name, runs in groups]
    total = costs[-1][1]
    if total.planned is None or total.spent is None:
        return [Text("The ledger has no entry: nothing was planned and nothing spent.")]
    convention = facts.study.convention
    return [
        Text(_sentences(facts, total, total.spent)),
        Table(
            ["", "FLOPs planned", "spent", "recomputed", "tokens spent", "training", "evaluation"],
            [[name, *_cells(each, convention)] for name, each in costs],
            caption=f"From the ledger, in the budget's convention ({convention})",
        ),
        Table(
            ["convention", "planned", "spent", "recomputed"],
            [
                [name + (" (budget)" if name == convention else ""), *_exact_cells(total, name)]
                for name in Convention
            ],
            caption="All runs, in each way of counting, exact",
        ),
    ]


def _sentences(facts: Facts, total: Costs, spent: Amount) -> str:
    convention = facts.study.convention
    charged = spent.flops(convention)
    parts = [f"{flops(charged, 4)} training FLOPs ({convention}) and {count(spent.tokens)} tokens"]
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


def _cells(costs: Costs, convention: Convention) -> list[str]:
    amounts = (costs.planned, costs.spent, costs.recomputed)
    return [
        *(DASH if one is None else flops(one.flops(convention), 4) for one in amounts),
        count(costs.spent.tokens) if costs.spent is not None else DASH,
        duration(costs.train_seconds),
        duration(costs.eval_seconds),
    ]


def _exact_cells(costs: Costs, convention: Convention) -> list[str]:
    amounts = (costs.planned, costs.spent, costs.recomputed)
    return [DASH if one is None else f"{one.flops(convention):,}" for one in amounts]
