"""What the two answers of a replayed study cost: the table knows what became of both."""

from __future__ import annotations

from dataclasses import dataclass

from budgetsweep.config import parse
from studies.database.tables import Run, Study
from studies.scaling.fit_data import FitPoint
from studies.scaling.prediction import StudyFit, promoted
from studies.simulation.run_table import Place, RunTable
from trainer.config import RunConfig


@dataclass(frozen=True)
class Answer:
    """A trial that could be promoted, and the run of the table that stands for its promotion."""

    name: str
    """`measured` or `predicted`: best."""
    number: int
    n_params: int
    place: Place | None
    """None: the table has no run of its size at the larger budget."""
    regret_nats: float | None


@dataclass(frozen=True)
class Regret:
    """Both answers beside the table's best at the larger budget."""

    budget_flops: float
    lowest: FitPoint
    answers: tuple[Answer, ...]

    @property
    def sentence(self) -> str:
        """One sentence."""
        sizes = []
        for one in self.answers:
            size = f"{one.name} best (trial {one.number}, {one.n_params:.3g} parameters)"
            nats = "not known, the table has no run of its size there"
            if one.regret_nats is not None:
                nats = f"{one.regret_nats:.4f} nats"
            sizes.append(f"{size} {nats}")
        return (
            f"regret at {self.budget_flops:.4g} FLOPs over the table's best there "
            f"({self.lowest.loss_nats:.4f} nats, {self.lowest.n_params:.3g} parameters): "
            f"{'; '.join(sizes)}"
        )


def regrets(study: Study, fit: StudyFit, best: Run | None, table: RunTable) -> Regret | None:
    """Regret of the measured and of the predicted best over the table's best at the larger budget.

    None: there is no `best` trial, or the table has no run at that budget.
    """
    budget = fit.scale * study.budget_flops
    lowest = table.lowest(budget)
    if lowest is None or best is None:
        return None
    chosen = [("measured", best)]
    if fit.candidates:
        runs = {run.id: run for run in fit.runs.runs}
        chosen.append(("predicted", runs[fit.candidates[0].run_id]))
    answers = []
    for name, run in chosen:
        config = promoted(study, parse(RunConfig, run.config, f"trial {run.number}"), fit.scale)
        place = None if config is None else table.place(config)
        nats = None if place is None else place.run.loss_nats - lowest.loss_nats
        answers.append(Answer(name, run.number, run.n_params, place, nats))
    return Regret(budget, lowest, tuple(answers))
