"""Rungs above the budget: the most promising trials once more, with a multiple of it."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

from budgetsweep.errors import ConfigError
from studies.database.run_kind import RunKind
from studies.database.store import Store
from studies.database.tables import Run, Study
from studies.execution.local_pool import WorkerPool
from studies.prior_studies import earlier_runs
from studies.promotion.promote import PromoteHooks, PromoteSettings, run_promotion
from studies.promotion.selection import Selection
from studies.scaling.prediction import StudyFit, fit_study
from studies.settings import SearchSettings
from studies.simulation.pool import SimulatedPool
from trainer.events import RunStatus


def train_finalists(
    store: Store,
    study: Study,
    settings: SearchSettings,
    pool: WorkerPool | SimulatedPool,
    hooks: PromoteHooks,
    out_of_time: Callable[[], bool],
) -> str | None:
    """Train the finalists of every rung above the budget, or continue doing so.

    Which they are follows from the runs of the rungs below alone, so the same call after an
    interruption continues with the same ones.

    Args:
        store: the study's database; its lease is held.
        study: its row, all trials finished.
        settings: rungs, scale, limits of time and FLOPs.
        pool: started workers.
        hooks: how to talk to the caller.
        out_of_time: asked before each run.

    Returns:
        Why runs are missing, in words; None: all are trained.
    """
    for rung in settings.rungs.of_finalists:
        begun = {
            run.parent_run_id: run
            for run in store.runs(study.id, kind=RunKind.FINALIST)
            if run.scale == float(rung)
        }
        for trial, fit in _finalists(store, study, settings, rung):
            earlier = begun.get(trial.id)
            if earlier is not None and earlier.status.is_finished:
                continue
            if hooks.should_stop() or out_of_time():
                return f"the finalists at {float(rung):g} times the budget are not all trained"
            budget = int(rung * study.budget_flops)
            limit = settings.total_flops
            spent = store.committed_flops(study.id, settings.convention)
            if earlier is None and limit is not None and spent + budget > limit:
                return (
                    f"--total-flops {limit:.4g}: {spent:.4g} are spent and a finalist at "
                    f"{float(rung):g} times the budget would cost {budget:.4g}"
                )
            promotion = PromoteSettings(
                storage=settings.storage,
                study=study.name,
                scale=float(rung),
                device=settings.device,
                runs_dir=settings.runs_dir,
                cache_dir=settings.cache_dir,
            )
            try:
                selection = Selection(trial, "predicted", fit)
                run_promotion(
                    store, study, selection, promotion, pool, hooks, kind=RunKind.FINALIST
                )
            except ConfigError as refused:
                hooks.observer.message(f"finalist: trial {trial.number}: {refused}")
    return None


def _finalists(
    store: Store, study: Study, settings: SearchSettings, rung: Fraction
) -> list[tuple[Run, StudyFit]]:
    """The trials to train on a rung, one a shape, the best predicted first."""
    runs = store.runs(study.id)
    below = [run for run in runs if run.scale is None or run.scale < rung]
    earlier = earlier_runs(store, study, cache_dir=settings.cache_dir)
    there = fit_study(study, below, float(rung), earlier)
    target = there
    if settings.for_scale is not None and settings.for_scale > rung:
        target = fit_study(study, below, settings.for_scale, earlier)
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
    wanted = settings.rungs.finalists(rung, settings.trials)
    return [(run, there) for run in list(shapes.values())[:wanted]]
