"""The report on larger budgets: the law that was fitted, the two answers, and how they held."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

from reports.document import Bullets, Table, Text
from reports.facts import Facts, final_loss
from reports.style.formats import DASH, known, loss, percent, perplexity, plural, rate, short
from studies.database.tables import Prediction, Run


def answers(facts: Facts) -> list[Text | Table | Bullets]:
    """The best at the search's budget and the best predicted at the larger one, side by side."""
    fit = facts.data.fit
    if fit is None:
        return [Text("Nothing was predicted: no search or promotion has fitted a law yet.")]
    if fit.refusal is not None:
        return [
            Text(f"Nothing is predicted: {fit.refusal}."),
            *_left_out(fit.record),
        ]
    record = fit.record
    told = _law(record) + _earlier(record)
    blocks: list[Text | Table | Bullets] = [Text(told, "The law:")]
    choice, level = record["choice"], record["level"]
    if choice is not None:
        candidates = {c["number"]: c for c in record["candidates"]}
        head = ["", "trial", "parameters", "loss at the search's budget",
                f"loss at {fit.scale:g} times it", f"{percent(level)} interval"]  # fmt: skip
        rows = []
        for name in ("measured", "predicted"):
            c = candidates[choice[name]]
            here = loss(c["at_budget_nats"])
            rows.append(
                [
                    f"{name} best",
                    str(c["number"]),
                    short(c["n_params"]),
                    here if c["measured_nats"] is not None else f"{here} (predicted)",
                    f"{loss(c['loss_nats'], 3)} (predicted)",
                    f"{loss(c['low_nats'], 3)} to {loss(c['high_nats'], 3)}",
                ]
            )
        blocks += [Table(head, rows), Text(_cost(choice, fit.scale))]
    return blocks + _left_out(record)


COUNTED = {
    "charged": "active parameters",
    "blocks": "parameters of the blocks",
}
"""What is counted as N, by the name on record."""
SURE = 0.99
"""A law of that weight is told as if it were the only one."""


def _law(record: dict[str, Any]) -> str:
    fit, counts = record["fit"], record.get("counts", "charged")
    weight, other = record.get("weight", 1.0), ""
    if weight < SURE:
        other = (
            f" This count of parameters has {percent(weight)} of the weight; predictions are the "
            "mean of this law and one in the other count."
        )
    ends = Counter(point.get("point") for point in record["points"])
    branches = ends["cooldown branch"]
    branched = f", {branches} of them cooldown branches," if branches else ""
    ranges = {name: fit[f"{name}_range"] for name in ("n_params", "tokens")}
    return (
        f"fitted to {plural(fit['n_points'], 'run')}{branched} of "
        f"{plural(fit['n_shapes'], 'size')} "
        f"({short(ranges['n_params'][0])} to {short(ranges['n_params'][1])} {COUNTED[counts]}) at "
        f"{plural(fit['n_budgets'], 'budget')}, {short(ranges['tokens'][0])} to "
        f"{short(ranges['tokens'][1])} tokens. A run scatters around it by "
        f"{percent(fit['noise'])} of its loss. Beyond these ranges it is an extrapolation.{other}"
    )


def _earlier(record: dict[str, Any]) -> str:
    """How many points came from where."""
    earlier = record.get("earlier", {})
    if not earlier:
        return ""
    told = ", ".join(f"{number} from study {name}" for name, number in earlier.items())
    return f" Of its points {len(record['points']) - sum(earlier.values())} are its own, {told}."


def _cost(choice: dict[str, Any], scale: float) -> str:
    if choice["measured"] == choice["predicted"]:
        return "They are the same trial: nothing speaks for another one."
    return (
        f"Promoting the measured best would cost {loss(choice['measured_costs_nats'], 3)} nats at "
        f"{scale:g} times the budget ({loss(choice['measured_costs_low'], 3)} to "
        f"{loss(choice['measured_costs_high'], 3)}); the predicted best is "
        f"{loss(choice['predicted_costs_nats'], 3)} nats worse at the search's own."
    )


def _left_out(record: dict[str, Any]) -> list[Text | Table | Bullets]:
    items = [
        Text(
            f"{plural(len(names), 'run')} {'is' if len(names) == 1 else 'are'} no point of the "
            f"law: {names[0]}{' and others' if len(names) > 1 else ''} {why}."
        )
        for why, names in record["left_out"].items()
    ]
    return [Bullets(items)] if items else []


def scores(facts: Facts) -> list[Text | Table]:
    """How what was predicted of promotions compares with what they reached."""
    runs = {run.id: run for run in facts.promotions}
    told = [(p, runs[p.run_id]) for p in facts.data.predictions if p.run_id in runs]
    if not told:
        return []
    head = ["promotion", "budget", "predicted", "interval", "PPL", "reached", "error", "inside"]
    blocks: list[Text | Table] = [Table(head, [_score_row(p, run) for p, run in told])]
    ended = [(p, run) for p, run in told if run.status == "complete" and known(run.val_loss_nats)]
    if ended:
        inside = sum(_inside(p, run) for p, run in ended)
        errors = [abs(final_loss(run) - p.val_loss_nats) for p, run in ended]
        mean = loss(math.fsum(errors) / len(errors), 3)
        blocks.append(
            Text(
                f"{inside} of {plural(len(ended), 'promotion')} ended inside the interval of "
                f"{percent(ended[0][0].level)}; mean error {mean} nats. Every prediction was on "
                "record before its run began."
            )
        )
    return blocks


def _inside(prediction: Prediction, run: Run) -> bool:
    return prediction.low_nats <= final_loss(run) <= prediction.high_nats


def _score_row(prediction: Prediction, run: Run) -> list[str]:
    ended = run.status == "complete" and known(run.val_loss_nats)
    error = f"{final_loss(run) - prediction.val_loss_nats:+.3f}" if ended else DASH
    return [
        f"{run.number} ({prediction.selected_by})",
        f"×{rate(run.scale)}",
        loss(prediction.val_loss_nats, 3),
        f"{loss(prediction.low_nats, 3)} to {loss(prediction.high_nats, 3)}",
        perplexity(math.exp(prediction.val_loss_nats)),
        loss(run.val_loss_nats, 3) if ended else run.status,
        error,
        ("yes" if _inside(prediction, run) else "no") if ended else DASH,
    ]
