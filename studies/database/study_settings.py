"""What decides the outcome of a study: one record that is stored, compared and shown."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, PlainSerializer

from budgetsweep.config import StrictModel
from model.flops import Convention
from studies.space.rungs import Rungs
from trainer.config import RunConfig
from trainer.identity import Identity, identity, marked


class Identifies:
    """Mark of a field whose other value makes another study; says what messages call it."""

    def __init__(self, label: str) -> None:
        self.label = label


def _rungs(value: Any) -> Any:
    return Rungs.parse(value) if isinstance(value, str) else value


class StudySettings(StrictModel):
    """What every session of a study shares."""

    backend: Annotated[str, Identifies("source of losses")] = "training"
    """Name of the backend (`studies.backends`)."""
    budget_flops: Annotated[int, Identifies("budget")]
    """Training FLOPs that one trial may spend, in `convention`."""
    convention: Annotated[Convention, Identifies("convention")]
    sampler: Annotated[str, Identifies("sampler")]
    seed: Annotated[int, Identifies("seed")]
    pruning: Annotated[bool, Identifies("pruning")] = False
    rungs: Annotated[Rungs, BeforeValidator(_rungs), PlainSerializer(str), Identifies("rungs")] = (
        Rungs()
    )
    """Budget levels of its runs."""
    points_from: Annotated[tuple[str, ...], Identifies("list of prior studies")] = ()
    """Prior studies whose complete runs are data points of the fit."""
    for_scale: Annotated[float | None, Identifies("scale to search for")] = None
    """The multiple of the budget whose best configuration is looked for; None: the budget's."""
    space: Annotated[dict[str, Any], Identifies("search space")]
    """The search space as `SearchSpace.to_dict()`."""
    base: Annotated[dict[str, Any], Identifies("run settings")]
    """Run settings that all trials share, as in a run's YAML; the data exact once prepared."""
    location: str | None = None
    """File that the backend reads. It may move: its checksum is part of `backend`."""
    sizes_only: bool = False
    """Runs stand for their numbers of parameters and tokens; how they were tuned is not known."""

    def identity(self) -> dict[str, Any]:
        """Plain values of what identifies the study, by label."""
        data = self.model_dump(mode="json")
        data["base"] = identity(RunConfig, data["base"], Identity.STUDY)
        if self.location is not None:
            data["base"].pop("data", None)  # the name of the file
        return {mark.label: data[name] for name, mark in marked(type(self), Identifies)}


def differences(stored: StudySettings, asked: StudySettings) -> dict[str, tuple[Any, Any]]:
    """What makes them two studies: the stored value and the one asked for, by label."""
    before, now = stored.identity(), asked.identity()
    return {label: (value, now[label]) for label, value in before.items() if value != now[label]}
