"""What is predicted for a larger budget: the scaling law, the two answers, and how they held."""

from __future__ import annotations

import math
from typing import Any

from budgetsweep.formats import DASH, count, known, loss, percent, perplexity, plural, rate
from reports.document import Bullets, Table, Text
from reports.facts import Facts, final_loss
from studies.database.tables import Prediction, Run
from trainer.events import RunStatus

COUNTED = {
    "charged": "active parameters: of a sampled softmax only the rows that are sampled",
    "blocks": "parameters of the blocks: embeddings are left out",
}
"""What is counted as N, by the name that is stored."""
SURE = 0.99
"""A law of that weight is described as if it were the only one."""


def answers(facts: Facts) -> list[Text | Table | Bullets]:
    """The best at the search's budget and the best predicted at the larger one, side by side."""
    fit = facts.data.fit
    if fit is None:
        return [Text("Nothing is predicted: no search or promotion has fitted a scaling law yet.")]
    if fit.refusal is not None:
        return [Text(f"{fit.refusal[0].upper()}{fit.refusal[1:]}."), *_left_out(fit.record)]
    record = fit.record
    law = Text(" ".join(_law(record)), "The scaling law:")
    if record["choice"] is None:
        return [law, *_left_out(record)]
    return [law, *_choice(record, fit.scale), *_left_out(record)]


def _law(record: dict[str, Any]) -> list[str]:
    fit, weight = record["fit"], record["weight"]
    sizes, tokens = fit["n_params_range"], fit["tokens_range"]
    sentences = [
        f"fitted to {plural(fit['n_points'], 'run')} of {plural(fit['n_shapes'], 'size')} at "
        f"{plural(fit['n_budgets'], 'budget')}: {count(sizes[0])} to {count(sizes[1])} parameters, "
        f"{count(tokens[0])} to {count(tokens[1])} tokens.",
        f"N counts the {COUNTED[record['counts']]}.",
        f"A run scatters around the law by {percent(fit['noise'])} of its loss.",
        "Beyond these ranges it is an extrapolation.",
    ]
    if weight < SURE:
        sentences.append(
            f"This count of parameters has {percent(weight)} of the weight; predictions are the "
            "mean of this law and one in the other count."
        )
    earlier = record["earlier"]
    if earlier:
        own = len(record["points"]) - sum(earlier.values())
        others = ", ".join(f"{number} from study {name}" for name, number in earlier.items())
        sentences.append(f"Of the runs fitted {own} are this study's own, {others}.")
    return sentences


def _choice(record: dict[str, Any], scale: float) -> list[Text | Table]:
    """The measured and the predicted best, and the regret of choosing one in the other's place."""
    choice, candidates = record["choice"], {c["number"]: c for c in record["candidates"]}
    head = ["", "trial", "parameters", "loss at the search's budget",
            f"loss at {scale:g} times it", f"{percent(record['level'])} interval"]  # fmt: skip
    rows = []
    for name in ("measured", "predicted"):
        c = candidates[choice[name]]
        here = loss(c["at_budget_nats"]) + (" (predicted)" if c["measured_nats"] is None else "")
        there = f"{loss(c['loss_nats'], 3)} (predicted)"
        interval = f"{loss(c['low_nats'], 3)} to {loss(c['high_nats'], 3)}"
        rows.append([f"{name} best", str(c["number"]), count(c["n_params"]), here, there, interval])
    regret = (
        f"Choosing trial {choice['measured']}, the measured best, has a regret of "
        f"{loss(choice['measured_costs_nats'], 3)} nats at {scale:g} times the budget "
        f"({loss(choice['measured_costs_low'], 3)} to {loss(choice['measured_costs_high'], 3)}). "
        f"Choosing trial {choice['predicted']}, the predicted best, has a regret of "
        f"{loss(choice['predicted_costs_nats'], 3)} nats at the search's own budget."
    )
    if choice["measured"] == choice["predicted"]:
        regret = "Both are the same trial: nothing speaks for another one."
    return [Table(head, rows), Text(regret)]


def _left_out(record: dict[str, Any]) -> list[Bullets]:
    items = [
        Text(
            f"{plural(len(names), 'run')} left out of the fit: {names[0]}"
            f"{' and others' if len(names) > 1 else ''} {why}."
        )
        for why, names in record["left_out"].items()
    ]
    return [Bullets(items)] if items else []


def scores(facts: Facts) -> list[Text | Table]:
    """How what was predicted of promotions compares with what they reached."""
    runs = {run.id: run for run in facts.promotions}
    predicted = [(p, runs[p.run_id]) for p in facts.data.predictions]
    if not predicted:
        return []
    head = ["promotion", "budget", "predicted", "interval", "PPL", "measured", "error", "within"]
    blocks: list[Text | Table] = [Table(head, [_score_row(p, run) for p, run in predicted])]
    ended = [(p, run) for p, run in predicted if _has_loss(run)]
    if ended:
        inside = sum(_within(p, run) for p, run in ended)
        errors = [abs(final_loss(run) - p.val_loss_nats) for p, run in ended]
        mean = loss(math.fsum(errors) / len(errors), 3)
        blocks.append(
            Text(
                f"{inside} of {plural(len(ended), 'promotion')} ended within the "
                f"{percent(ended[0][0].level)} interval; mean error {mean} nats. Every prediction "
                "was recorded before its run."
            )
        )
    return blocks


def _has_loss(run: Run) -> bool:
    return run.status == RunStatus.COMPLETE and known(run.val_loss_nats)


def _within(prediction: Prediction, run: Run) -> bool:
    return prediction.low_nats <= final_loss(run) <= prediction.high_nats


def _score_row(prediction: Prediction, run: Run) -> list[str]:
    middle, measured = prediction.val_loss_nats, [run.status, DASH, DASH]
    if _has_loss(run):
        within = "yes" if _within(prediction, run) else "no"
        measured = [loss(run.val_loss_nats, 3), f"{final_loss(run) - middle:+.3f}", within]
    return [
        f"{run.kind} {run.number} ({prediction.selected_by})",
        f"×{rate(run.scale)}",
        loss(middle, 3),
        f"{loss(prediction.low_nats, 3)} to {loss(prediction.high_nats, 3)}",
        perplexity(math.exp(middle)),
        *measured,
    ]
