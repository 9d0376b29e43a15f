"""Finalists: the most promising trials once more, on the rungs above the budget."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

from budgetsweep.errors import ConfigError
from studies.database.run_kind import RunKind
from studies.database.store import Store
from studies.database.tables import Run, Study
from studies.execution.base import Executor
from studies.prior_studies import prior_runs
from studies.promotion.promote import PromoteHooks, PromoteSettings, run_promotion
from studies.promotion.selection import Selection
from studies.scaling.prediction import fit_study
from studies.settings import SearchSettings
from trainer.events import RunStatus


def train_finalists(
    store: Store,
    study: Study,
    settings: SearchSettings,
    executor: Executor,
    hooks: PromoteHooks,
    out_of_time: Callable[[], bool],
) -> str | None:
    """Train the finalists of every rung above the budget, or continue doing so.

    Which they are follows from the runs of the rungs below alone, so the same call after an
    interruption continues with the same ones. All trials are finished, the study's lease is held,
    the workers are started.

    Returns:
        Why runs are missing, in words; None: all are trained.
    """
    for rung in settings.rungs.of_finalists:
        scale = float(rung)
        started = {
            run.parent_run_id: run
            for run in store.runs(study.id)
            if run.kind != RunKind.TRIAL and run.scale == scale
        }
        for selection in _finalists(store, study, settings, rung):
            trial = selection.trial
            known = started.get(trial.id)
            if known is not None and known.status.is_finished:
                continue
            if hooks.should_stop() or out_of_time():
                return f"the finalists at {scale:g} times the budget are not all trained"
            budget, limit = int(rung * study.budget_flops), settings.total_flops
            spent = store.committed_flops(study.id, settings.convention)
            if known is None and limit is not None and spent + budget > limit:
                return (
                    f"--total-flops {limit:.4g}: {spent:.4g} are spent and a finalist at "
                    f"{scale:g} times the budget would cost {budget:.4g}"
                )
            promotion = PromoteSettings(
                storage=settings.storage,
                study=study.name,
                scale=scale,
                device=settings.device,
                runs_dir=settings.runs_dir,
                cache_dir=settings.cache_dir,
            )
            try:
                run_promotion(
                    store, study, selection, promotion, executor, hooks, kind=RunKind.FINALIST
                )
            except ConfigError as refused:
                hooks.observer.message(f"finalist: trial {trial.number}: {refused}")
    return None


def _finalists(
    store: Store, study: Study, settings: SearchSettings, rung: Fraction
) -> list[Selection]:
    """The trials to train on a rung, one a shape, the best predicted first."""
    runs = store.runs(study.id)
    below = [run for run in runs if run.scale is None or run.scale < rung]
    prior = prior_runs(store, study, cache_dir=settings.cache_dir)
    there = fit_study(study, below, float(rung), prior)
    target = there
    if settings.for_scale is not None and settings.for_scale > rung:
        target = fit_study(study, below, settings.for_scale, prior)
    trials = {run.id: run for run in runs if run.kind == RunKind.TRIAL}
    ordered = [trials[candidate.run_id] for candidate in target.candidates]
    if not ordered:
        complete = [
            r for r in trials.values() if r.status == RunStatus.COMPLETE and r.has_whole_budget
        ]
        ordered = sorted(complete, key=lambda r: (r.val_loss_nats or 0.0, r.number))
    shapes: dict[str, Run] = {}
    for run in ordered:
        shapes.setdefault(repr(run.config["model_config"]), run)
    chosen = list(shapes.values())[: settings.rungs.finalists(rung, settings.trials)]
    return [Selection(trial, "predicted", there) for trial in chosen]
