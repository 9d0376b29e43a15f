"""The figures of a scaling fit for the law that a study has stored."""

from __future__ import annotations

from typing import Any

import pandas as pd

from budgetsweep.formats import known
from reports.facts import Facts, final_loss, run_config
from reports.figures import scaling
from reports.style.theme import Chart, NoChart
from studies.scaling.result import ScalingFit
from trainer.events import RunStatus

NO_LAW = "Too few runs to fit a scaling law: the text above says what is missing."


def isoflop_fit(facts: Facts) -> Chart | NoChart:
    """Loss against size at each budget level, the law's valleys and their lowest points."""
    if (record := facts.law) is None:
        return NoChart("isoflop_fit", NO_LAW)
    return scaling.isoflop_fit(_points(record), ScalingFit.from_dict(record["fit"]))


def compute_frontier(facts: Facts) -> Chart | NoChart:
    """Loss against compute, the frontier, and the promotion: predicted, then measured."""
    if (record := facts.law) is None:
        return NoChart("compute_frontier", NO_LAW)
    law = ScalingFit.from_dict(record["fit"])
    return scaling.compute_frontier(_points(record), law, *_promoted(facts, record))


def _points(record: dict[str, Any]) -> pd.DataFrame:
    columns = ["n_params", "tokens", "val_loss_nats", "max_lr", "batch_tokens"]
    return pd.DataFrame(record["points"])[columns].astype(float)


def _promoted(
    facts: Facts, record: dict[str, Any]
) -> tuple[dict[str, float] | None, dict[str, float] | None]:
    """The newest prediction of a promotion and, where it has ended, what it reached.

    Before there is one: the best candidate.
    """
    if facts.data.predictions:
        predicted = facts.data.predictions[-1]
        run = next(run for run in facts.promotions if run.id == predicted.run_id)
        config = run_config(run)
        blocks = record["counts"] == "blocks"
        n_params = config.n_block_params if blocks else config.n_active_params
        size = {"n_params": float(n_params), "tokens": float(run.planned_tokens)}
        prediction = {**size, "loss_nats": predicted.val_loss_nats,
                      "low_nats": predicted.low_nats, "high_nats": predicted.high_nats}  # fmt: skip
        ended = run.status == RunStatus.COMPLETE and known(run.val_loss_nats)
        return prediction, {**size, "loss_nats": final_loss(run)} if ended else None
    if not record["candidates"]:
        return None, None
    best = record["candidates"][0]
    counted = next(p["n_params"] for p in record["points"] if p["run_id"] == best["run_id"])
    names = ("tokens", "loss_nats", "low_nats", "high_nats")
    return {"n_params": counted, **{name: float(best[name]) for name in names}}, None
