"""What loss a model of N parameters reaches on D tokens, learnt from finished runs. No torch."""

from studies.scaling.fit import fit
from studies.scaling.fit_data import Observation
from studies.scaling.priors import Prior, Priors
from studies.scaling.result import Extrapolation, Prediction, ScalingFit
from studies.scaling.runs_csv import RunsTable, read_runs

__all__ = [
    "Extrapolation", "Observation", "Prediction", "Prior", "Priors", "RunsTable", "ScalingFit",
    "fit", "read_runs",
]  # fmt: skip
