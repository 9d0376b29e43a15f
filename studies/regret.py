"""What the two answers of a replayed study would have cost: the table knows what became of them."""

from __future__ import annotations

from budgetsweep.config import parse
from studies.prediction import StudyFit, promoted
from studies.replay import ReplayTable
from studies.tables import Run, Study
from trainer.config import RunConfig


def regrets(study: Study, fit: StudyFit, best: Run | None, table: ReplayTable) -> str | None:
    """Regret of the measured and of the predicted best over the table's best at the larger budget.

    Args:
        study: its row.
        fit: what its runs predict of `fit.scale` times the budget.
        best: the trial that measured best; None: there is none.
        table: what is replayed.

    Returns:
        A sentence; None: the table has no run at that budget.
    """
    budget = fit.scale * study.budget_flops
    lowest = table.lowest(budget)
    if lowest is None or best is None:
        return None
    answers = [("measured", best.number, best.config)]
    if fit.candidates:
        first = fit.candidates[0]
        configs = {run.id: run.config for run in fit.points.runs}
        answers.append(("predicted", first.number, configs[first.run_id]))
    told = []
    for name, number, data in answers:
        config = promoted(study, parse(RunConfig, data, f"trial {number}"), fit.scale)
        place = None if config is None else table.place(config)
        size = f"{name} best (trial {number}"
        if place is None:
            told.append(f"{size}) not known, the table has no run of its size there")
        else:
            nats = place.run.loss_nats - lowest.loss_nats
            told.append(f"{size}, {place.run.n_params:.3g} parameters) {nats:.4f} nats")
    return (
        f"regret at {budget:.4g} FLOPs over the table's best there ({lowest.loss_nats:.4f} nats, "
        f"{lowest.n_params:.3g} parameters): {'; '.join(told)}"
    )
