"""The promotion: a trial's shape, trained with a multiple of the study's budget.

What changes with the length of the run follows `studies.scaling.rescaling`; the shape never does.
The predicted loss is recorded before the run trains.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from budgetsweep.config import parse
from budgetsweep.constraint import Admitted, Limits, Rejected, admit
from budgetsweep.errors import ConfigError, Reason, StudyError
from studies.backends import backend_of
from studies.database.connection import storage_url
from studies.database.run_kind import RunKind
from studies.database.store import Store, config_hash
from studies.database.tables import Prediction, Run, Study
from studies.execution.base import Executor, RunSource
from studies.execution.dispatcher import Dispatcher, recover
from studies.execution.messages import Workers
from studies.planning import Speed, measure_speed
from studies.prior_studies import prior_runs
from studies.promotion.selection import Select, Selection, record_prediction, select_trial
from studies.scaling.prediction import fit_study
from studies.scaling.rescaling import Rescaling, promoted_config
from studies.settings import runs_folder
from studies.space.sample import Sample
from studies.trackers.base import Observer
from trainer.config import RunConfig
from trainer.data.facts import DataFacts
from trainer.events import RunStatus

if TYPE_CHECKING:
    from trainer.data.shards.progress import PrepareProgress


DEFAULT_SCALE = 100.0
"""The budget of a promotion, as a multiple of the study's, where the user names none."""


@dataclass(frozen=True)
class PromoteSettings:
    """What the user asked for."""

    storage: str | Path = "budgetsweep.db"
    study: str | None = None
    trial: int | None = None
    """None: chosen by `select`."""
    select: Select | None = None
    """None: `predicted` where a law can be fitted to the study, else `measured`."""
    scale: float = DEFAULT_SCALE
    points_from: tuple[str, ...] = ()
    """Prior studies, beside those of the search, whose runs are data points of the fit."""
    device: str = "auto"
    output_dir: Path | None = None
    overrides: tuple[str, ...] = ()
    runs_dir: Path | None = None
    cache_dir: Path | None = None

    @property
    def asked_workers(self) -> Workers:
        """What is asked of the executor."""
        return Workers(device=self.device, cache_dir=self.cache_dir)

    def __post_init__(self) -> None:
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise ConfigError("--scale: expected a number above 0, such as 100")
        if self.trial is not None and self.select is not None:
            raise ConfigError("--trial names the trial to promote: leave out --select")


@dataclass(frozen=True)
class PromotionPlan:
    """What a promotion will do, said before it starts."""

    selection: Selection
    predicted: Prediction | None
    """Its loss as predicted before the run; None: the study has too few runs for a law."""
    config: RunConfig
    budget_flops: int
    charge_flops: int
    rescaling: Rescaling
    changes: dict[str, Any]
    """Settings that differ from the trial's, by name."""
    epochs: float | None
    memory_bytes: int | None
    seconds: float | None
    """Estimated from measured speed; None: it could not be measured."""
    resumed_at_step: int


@dataclass
class PromoteHooks:
    """How a promotion talks to its caller."""

    observer: Observer = field(default_factory=Observer)
    should_stop: Callable[[], bool] = lambda: False
    should_kill: Callable[[], bool] = lambda: False
    on_plan: Callable[[PromotionPlan], bool] = lambda _: True
    """Shown before training; False: do not start."""
    on_prepare: Callable[[PrepareProgress], None] | None = None


@dataclass(frozen=True)
class PromotionOutcome:
    """How a promotion ended; its run is queued when it was not started."""

    trial: Run
    run: Run
    predicted: Prediction | None = None
    """Recorded before it trained."""
    regret: str | None = None
    """What the choice of this trial costs, in words, where the backend knows."""


def promote(settings: PromoteSettings, hooks: PromoteHooks) -> PromotionOutcome:
    """Train a trial's model with `scale` times the budget, or continue doing so.

    Raises:
        UserError: no such study or trial, too little data or memory.
    """
    with Store.open(settings.storage) as store:
        study = store.study(settings.study)
        backend = backend_of(study)
        backend.check_promotion(settings.overrides)
        prior = prior_runs(store, study, settings.points_from, settings.cache_dir)
        fit = fit_study(study, store.runs(study.id), settings.scale, prior)
        selection = select_trial(store, study, fit, settings.trial, settings.select)
        hooks.observer.message(f"data: {study.data_description}")
        store.acquire_lease(study.id)
        try:
            with backend.executor(settings.asked_workers, for_promotion=True) as executor:
                done = run_promotion(store, study, selection, settings, executor, hooks)
                regret = backend.regret(study, fit, store.best_run(study.id))
                return dataclasses.replace(done, regret=regret)
        finally:
            store.release_lease(study.id)


def run_promotion(
    store: Store,
    study: Study,
    selection: Selection,
    settings: PromoteSettings,
    executor: Executor,
    hooks: PromoteHooks,
    kind: RunKind = RunKind.PROMOTION,
) -> PromotionOutcome:
    """Train the finalist or promotion of a chosen trial; the study's lease is held."""
    backend, trial = backend_of(study), selection.trial
    original = parse(RunConfig, trial.config, f"trial {trial.number}")
    budget = int(settings.scale * study.budget_flops)
    limits = Limits(budget, study.convention, executor.device())
    wanted, rescaling = promoted_config(original, budget, settings.overrides, limits)
    wanted = wanted.with_changes(device=settings.device)
    admitted = _admitted(wanted, limits)
    if selection.selected_by == "predicted" and not _names_lr(settings.overrides):
        wanted = selection.fit.tuned(wanted, admitted.config)
    fixed, facts = backend.promotion_data(
        study, wanted, admitted.config.wanted_train_tokens, settings.asked_workers,
        hooks.on_prepare,
    )  # fmt: skip
    if facts.val_checksum != study.val_checksum:
        raise StudyError(
            f"the validation data are not those of study {study.name!r} any more (their checksum "
            "differs), so the promoted loss could not be compared; restore them"
        )
    admitted = _admitted(fixed, dataclasses.replace(limits, data=facts))
    refusal = backend.refusal(admitted)
    if refusal is not None:
        raise ConfigError(
            f"the promotion of trial {trial.number} is refused: {refusal.detail}; choose another "
            "--scale, --trial or --select"
        )
    run = _find_or_add(store, study, trial, settings, admitted, facts, executor, kind)
    if run.attempts == 0:
        record_prediction(store, study, run, admitted.config, selection)
    predicted = next((p for p in store.predictions(study.id) if p.run_id == run.id), None)
    plan = PromotionPlan(
        selection=selection,
        predicted=predicted,
        config=parse(RunConfig, run.config, kind),
        budget_flops=budget,
        charge_flops=admitted.charge_flops,
        rescaling=rescaling,
        changes=run.params,
        epochs=admitted.epochs,
        memory_bytes=admitted.memory_bytes,
        seconds=_seconds(admitted, executor),
        resumed_at_step=run.step,
    )
    if run.status == RunStatus.COMPLETE or not hooks.on_plan(plan):
        return PromotionOutcome(trial, run, predicted)
    executor.start_all()
    Dispatcher(
        store, study, executor, _OneRun(run), hooks.observer,
        should_stop=hooks.should_stop, should_kill=hooks.should_kill,
    ).run()  # fmt: skip
    return PromotionOutcome(trial, store.run(run.id), predicted)


def _names_lr(overrides: Iterable[str]) -> bool:
    return any(override.startswith(("max_lr=", "min_lr")) for override in overrides)


def _admitted(config: RunConfig, limits: Limits) -> Admitted:
    answer = admit(config, limits)
    if isinstance(answer, Rejected):
        advice = {
            Reason.TOO_MANY_EPOCHS: "give more data, a smaller --scale, or --set data.max_epochs=N",
            Reason.OUT_OF_MEMORY: "set a smaller batch with --set batch_size=N",
        }.get(answer.reason, "choose another --scale or --set")
        raise ConfigError(f"the promotion is refused: {answer.detail}; {advice}")
    return answer


def _seconds(admitted: Admitted, executor: Executor) -> float | None:
    seconds = min(2.0, max(0.05, admitted.charge_flops / 1e12))
    speed = measure_speed(Sample([admitted], []), executor, seconds_each=seconds)
    return speed.seconds(admitted.config) if isinstance(speed, Speed) else None


def _find_or_add(
    store: Store,
    study: Study,
    trial: Run,
    settings: PromoteSettings,
    admitted: Admitted,
    facts: DataFacts,
    executor: Executor,
    kind: RunKind,
) -> Run:
    """The unfinished or complete run of just this configuration, or a new one."""
    known = [run for run in store.runs(study.id) if run.kind != RunKind.TRIAL]
    digest = config_hash(admitted.config)
    for run in known:
        if (
            run.config_hash == digest
            and run.parent_run_id == trial.id
            and run.status != RunStatus.FAILED
        ):
            recover(store, study, executor)
            return store.run(run.id)
    number = max((run.number for run in known if run.kind == kind), default=-1) + 1
    folder = runs_folder(storage_url(settings.storage), settings.runs_dir) / study.name
    output_dir = settings.output_dir or folder / f"{kind}-{number:03d}"
    config = admitted.config.with_changes(output_dir=str(output_dir.absolute()))
    run_id = store.add_run(
        study_id=study.id,
        kind=kind,
        number=number,
        params=_differences(parse(RunConfig, trial.config, "trial"), config),
        config=config,
        budget_flops=admitted.config.budget_flops or 0,
        data_checksum=facts.data_checksum,
        val_checksum=study.val_checksum,
        epochs=admitted.epochs,
        estimated_memory_bytes=admitted.memory_bytes,
        output_dir=config.output_dir,
        parent_run_id=trial.id,
        scale=settings.scale,
    )
    return store.run(run_id)


def _differences(old: RunConfig, new: RunConfig) -> dict[str, Any]:
    """Top-level settings of the new configuration that the old one had otherwise."""
    ignored = ("output_dir", "data", "device", "budget_flops", "model_config")
    before, after = old.to_dict(), new.to_dict()
    return {
        key: value
        for key, value in after.items()
        if key not in ignored and before.get(key) != value
    }


class _OneRun(RunSource):
    """A run source with a single run."""

    def __init__(self, run: Run) -> None:
        self._run: Run | None = None if run.status.is_finished else run

    def next_run(self) -> Run | None:
        """The run, once."""
        run, self._run = self._run, None
        return run
