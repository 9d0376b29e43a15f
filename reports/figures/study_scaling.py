"""The figures of a scaling fit for the law that a study has on record."""

from __future__ import annotations

from typing import Any

import pandas as pd

from reports.facts import Facts, final_loss, run_config
from reports.figures import scaling as figures_scaling
from reports.style.formats import known
from reports.style.theme import Chart, NoChart

NO_LAW = "The runs carry no law of the loss; the text says why."


def isoflop_fit(facts: Facts) -> Chart | NoChart:
    """Loss against size at each rung, the law's valleys and their lowest points."""
    record = _record(facts)
    if record is None:
        return NoChart("isoflop_fit", NO_LAW)
    return figures_scaling.isoflop_fit(_points(record), record["fit"])


def compute_frontier(facts: Facts) -> Chart | NoChart:
    """Loss against compute, the frontier, and the promotion: predicted, then measured."""
    record = _record(facts)
    if record is None:
        return NoChart("compute_frontier", NO_LAW)
    prediction, outcome = _promoted(facts, record)
    return figures_scaling.compute_frontier(_points(record), record["fit"], prediction, outcome)


def regret(facts: Facts) -> Chart | NoChart:
    """What each size costs at the search's budget and at the promotion's."""
    record, fit = _record(facts), facts.data.fit
    if record is None or fit is None:
        return NoChart("regret", NO_LAW)
    chosen = {}
    if record["choice"] is not None:
        sizes = {p["run_id"]: p["n_params"] for p in record["points"]}
        numbers = {c["number"]: c["run_id"] for c in record["candidates"]}
        for name in ("measured", "predicted"):
            chosen[f"{name} best"] = sizes[numbers[record["choice"][name]]]
    budget = float(facts.study.budget_flops)
    return figures_scaling.regret(
        _points(record), record["fit"], budget, budget * fit.scale, chosen
    )


def lr_optimum(facts: Facts) -> Chart | NoChart:
    """The best learning rate against tokens, as the law has it."""
    record = _record(facts)
    if record is None:
        return NoChart("lr_optimum", NO_LAW)
    return figures_scaling.lr_optimum(_points(record), record["fit"])


def _record(facts: Facts) -> dict[str, Any] | None:
    fit = facts.data.fit
    return None if fit is None or fit.refusal is not None else fit.record


def _points(record: dict[str, Any]) -> pd.DataFrame:
    return (
        pd.DataFrame(record["points"])
        .drop(columns=["run_id", "point"], errors="ignore")
        .astype(float)
    )


def _promoted(
    facts: Facts, record: dict[str, Any]
) -> tuple[dict[str, float] | None, dict[str, float] | None]:
    """The newest prediction of a promotion and, where it has ended, what it reached.

    Before there is one: the best candidate.
    """
    runs = {run.id: run for run in facts.promotions}
    for told in reversed(facts.data.predictions):
        run = runs.get(told.run_id)
        config = None if run is None else run_config(run)
        if run is None or config is None:
            continue
        blocks = record.get("counts") == "blocks"
        n_params = config.n_block_params if blocks else config.n_active_params
        size = {"n_params": float(n_params), "tokens": float(run.planned_tokens)}
        prediction = {**size, "loss_nats": told.val_loss_nats, "low_nats": told.low_nats,
                      "high_nats": told.high_nats}  # fmt: skip
        ended = run.status == "complete" and known(run.val_loss_nats)
        return prediction, {**size, "loss_nats": final_loss(run)} if ended else None
    if not record["candidates"]:
        return None, None
    best = record["candidates"][0]
    sizes = {p["run_id"]: p["n_params"] for p in record["points"]}
    names = ("loss_nats", "low_nats", "high_nats")
    return (
        {"n_params": sizes[best["run_id"]], "tokens": float(best["tokens"]),
         **{name: best[name] for name in names}},
        None,
    )  # fmt: skip
