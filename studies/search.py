"""A search: propose, admit, dispatch, tell; and the same again after any interruption.

The study row keeps what decides the outcome (budget, convention, sampler, seed, space, the fixed
run settings with the exact data). The same command again finds it and goes on; a command that
would change it is refused, because its trials could not be compared.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from budgetsweep.constraint import Admitted, Limits, Rejected, admit
from budgetsweep.errors import ConfigError, Reason, StudyError
from model.flops import Convention
from studies.database.connection import storage_url
from studies.database.run_kind import RunKind
from studies.database.store import Store
from studies.database.study_settings import differences
from studies.database.tables import Run, Study
from studies.execution.dispatcher import LEASE_SECONDS, Dispatcher
from studies.execution.local_pool import WorkerPool
from studies.execution.observer import Observer
from studies.planning import (
    PLAN_SAMPLES,
    Speed,
    TimePlan,
    measure_speed,
    measuring_seconds,
    plan_time,
    sample_space,
)
from studies.prior_studies import earlier_runs, settle
from studies.promotion.finalists import train_finalists
from studies.promotion.promote import DEFAULT_SCALE, PromoteHooks
from studies.samplers.law import LawSampler
from studies.samplers.objective import Objective
from studies.samplers.proposals import Proposals
from studies.scaling.prediction import StudyFit, fit_study, promoted
from studies.settings import SearchSettings, no_gpu_to_share
from studies.simulation.pool import SimulatedPool
from studies.space.defaults import first_proposal
from studies.space.search_space import SearchSpace
from studies.study_data import fix_data
from studies.trials import TrialSource, reconcile
from trainer.config import TOKENIZER_VOCABULARIES

if TYPE_CHECKING:
    from trainer.data.prepare import PrepareProgress


def _go_ahead(plan: TimePlan) -> bool:
    del plan
    return True


@dataclass
class Hooks:
    """How a search talks to its caller."""

    observer: Observer = field(default_factory=Observer)
    should_stop: Callable[[], bool] = lambda: False
    should_kill: Callable[[], bool] = lambda: False
    confirm: Callable[[TimePlan], bool] = _go_ahead
    """Asked once before the first trial, with the measured time; False: do not start."""
    on_prepare: Callable[[PrepareProgress], None] | None = None


@dataclass(frozen=True)
class SearchOutcome:
    """Where a search stands when it returns."""

    study_name: str
    best: Run | None
    """The trial of the lowest loss at the budget."""
    fit: StudyFit | None
    """What the runs predict of a larger budget; None: no trial is complete."""
    n_finished: int
    n_rejected: int
    reason: str
    """Why it stopped, in words."""
    finished: bool
    """False: the same command continues it."""


def search(settings: SearchSettings, hooks: Hooks) -> SearchOutcome:
    """Run or continue a search.

    Raises:
        UserError: settings, data or database do not allow it; nothing is lost.
    """
    space = settings.resolved_space()
    base = settings.base()
    _check_base(base, space, settings)
    with contextlib.ExitStack() as stack:
        pool: WorkerPool | SimulatedPool | None = None
        if settings.names_device:  # which may be missing: that leaves no new database behind
            pool = worker_pool(settings)
            stack.enter_context(pool)
            share_gpus(settings, pool)
        # So with earlier studies: they are in the database already.
        store = Store.open(settings.storage, create=not settings.points_from)
        stack.callback(store.close)
        study = _open_study(store, settings, space, base)
        store.acquire_lease(study.id, seconds=LEASE_SECONDS)
        stack.callback(store.release_lease, study.id)
        if pool is None:
            pool = _pool(settings)
            stack.enter_context(pool)
        else:
            stack.callback(pool.close)  # before the lease is given back
        return _search(store, study, settings, space, pool, hooks)


def _pool(settings: SearchSettings) -> WorkerPool | SimulatedPool:
    if settings.world is not None:
        return SimulatedPool(settings.workers or 1, table=settings.replay)
    return worker_pool(settings)


def worker_pool(settings: SearchSettings) -> WorkerPool:
    """The pool of a search that trains, its first worker on the way up."""
    return WorkerPool(
        settings.workers or 1,
        device=settings.device,
        threads=settings.threads,
        cache_dir=settings.cache_dir,
    )


def share_gpus(settings: SearchSettings, pool: WorkerPool) -> None:
    """Give each GPU the number of workers asked for, which decides what memory a trial may take.

    Args:
        settings: what is asked for.
        pool: not started but for its first worker, which is waited for.

    Raises:
        ConfigError: there is no such device, or it is no GPU and a number per GPU is asked for.
        StudyError: the first worker did not start.
    """
    wanted, kind = settings.trials_per_gpu, pool.device().kind
    if wanted is None:
        return
    if kind != "cuda":
        raise no_gpu_to_share(wanted, settings.device)
    pool.share_gpus(wanted)


def _check_base(base: Mapping[str, Any], space: SearchSpace, settings: SearchSettings) -> None:
    """Refuse a wrong `--set` or a space with nothing in it before anything is written."""
    limits = Limits(settings.budget_flops, settings.convention)
    rng = np.random.default_rng(settings.seed)
    answers = [
        admit(space.run_data(space.random_settings(rng), base), limits) for _ in range(PLAN_SAMPLES)
    ]
    if any(isinstance(answer, Admitted) for answer in answers):
        return
    first = next(answer for answer in answers if isinstance(answer, Rejected))
    same = [a for a in answers if isinstance(a, Rejected) and a.reason == Reason.OVER_BUDGET]
    nearest = min(same, key=lambda a: a.excess or 0.0) if same else first
    raise ConfigError(
        f"none of {PLAN_SAMPLES} random proposals is admitted; the nearest: {nearest.detail}"
    )


def _open_study(
    store: Store, settings: SearchSettings, space: SearchSpace, base: dict[str, Any]
) -> Study:
    asked = settings.of_study(space, base)
    study = store.find_study(settings.study_name)
    if study is None:
        base = settle(
            store, settings.study_name, settings.convention, space, base, settings.points_from
        )
        return store.create_study(settings.study_name, asked.model_copy(update={"base": base}))
    for what, (old, new) in differences(study.settings, asked).items():
        shown = f" ({old!r}, now {new!r})" if len(repr(old)) + len(repr(new)) < 80 else ""
        raise StudyError(
            f"study {study.name!r} was made with another {what}{shown}; its trials could not "
            "be compared. Give the same as before, or another name with --study"
        )
    if study.settings.replay != asked.replay:
        moved = study.settings.model_copy(update={"replay": asked.replay})
        store.update_settings(study.id, moved)
        return store.study(study.name)
    return study


def _search(
    store: Store,
    study: Study,
    settings: SearchSettings,
    space: SearchSpace,
    pool: WorkerPool | SimulatedPool,
    hooks: Hooks,
) -> SearchOutcome:
    study, data = fix_data(
        store, study, space, cache_dir=settings.cache_dir, on_prepare=hooks.on_prepare
    )
    base = study.settings.base
    proposals = Proposals(
        storage_url(settings.storage) if settings.world is None else None,
        study.name,
        space,
        settings.sampler,
        settings.seed,
        _first(space, base, study, settings),
        settings.pruning,
        _law(space, base, study) if settings.sampler == "law" else None,
    )
    try:
        earlier = earlier_runs(store, study, cache_dir=settings.cache_dir)
        for name, runs in earlier.items():
            hooks.observer.message(f"{len(runs)} complete runs of {name} are points of the law too")
        objective = Objective(study, store.runs(study.id), earlier)
        reconcile(store, study, proposals, objective)
        source = TrialSource(
            store,
            study,
            settings,
            space,
            data,
            proposals,
            objective,
            hooks.observer,
            device=pool.device_per_worker(),
            should_stop=hooks.should_stop,
        )
        if source.reason_to_stop() is None and not hooks.should_stop():
            if not source.recovered and not store.runs(study.id, kind=RunKind.TRIAL):
                plan = _announce(settings, space, base, source.limits, pool, hooks)
                if plan is not None and not hooks.confirm(plan):
                    return _outcome(store, study, settings, "not started", finished=False)
            pool.start_all()
            finished = Dispatcher(
                store,
                study,
                pool,
                source,
                hooks.observer,
                should_stop=lambda: hooks.should_stop() or source.out_of_time(),
                should_kill=hooks.should_kill,
                pruning=settings.pruning,
            ).run()
        else:
            finished = True
        missing = None
        if finished and not source.out_of_time() and not hooks.should_stop():
            promote_hooks = PromoteHooks(
                observer=hooks.observer,
                should_stop=hooks.should_stop,
                should_kill=hooks.should_kill,
                on_prepare=hooks.on_prepare,
            )
            missing = train_finalists(
                store, study, settings, pool, promote_hooks, source.out_of_time
            )
        reason = source.reason_to_stop() or ("interrupted" if not finished else "done")
        finished = finished and missing is None and not source.out_of_time()
        return _outcome(store, study, settings, missing or reason, finished=finished)
    finally:
        proposals.close()


def _first(
    space: SearchSpace, base: Mapping[str, Any], study: Study, settings: SearchSettings
) -> dict[str, Any] | None:
    """The known-good first proposal, unless the constraint refuses it."""
    if settings.replay is not None:
        return settings.replay.first(space, study.budget_flops)
    n_vocab = TOKENIZER_VOCABULARIES[base["tokenizer_encoding"]]
    convention: Convention = study.convention  # type: ignore[assignment]
    first = first_proposal(space, study.budget_flops, n_vocab, convention)
    answer = admit(space.run_data(first, base), Limits(study.budget_flops, convention))
    return first if isinstance(answer, Admitted) else None


def _law(space: SearchSpace, base: Mapping[str, Any], study: Study) -> LawSampler:
    limits = Limits(study.budget_flops, study.convention)  # type: ignore[arg-type]
    for_scale = study.settings.for_scale
    if for_scale is None:
        return LawSampler(space, base, limits)
    return LawSampler(space, base, limits, lambda config: promoted(study, config, for_scale))


def _announce(
    settings: SearchSettings,
    space: SearchSpace,
    base: Mapping[str, Any],
    limits: Limits,
    pool: WorkerPool | SimulatedPool,
    hooks: Hooks,
) -> TimePlan | None:
    """Measure the device and say what a trial and the search will take; None: nobody knows."""
    sample = sample_space(space, base, limits, PLAN_SAMPLES, settings.seed)
    if not sample.admitted:
        (reason, _), *_ = sample.reasons().most_common(1)
        raise ConfigError(
            f"no configuration of the space fits this device and data; {sample.example(reason)}"
        )
    if isinstance(pool, SimulatedPool):
        return None
    speed = measure_speed(
        sample,
        pool.measure_share,
        pool.device().name,
        seconds_each=measuring_seconds(settings.budget_flops),
    )
    if not isinstance(speed, Speed):
        hooks.observer.message(f"the speed of this device could not be measured: {speed}")
        return None
    return plan_time(
        sample,
        speed,
        n_trials=settings.trials,
        n_workers=pool.n_workers,
        budget_flops=settings.budget_flops,
        rungs=settings.rungs,
    )


def _outcome(
    store: Store, study: Study, settings: SearchSettings, reason: str, *, finished: bool
) -> SearchOutcome:
    best, fit = store.best_run(study.id), None
    if best is not None:
        earlier = earlier_runs(store, study, cache_dir=settings.cache_dir)
        scale = settings.for_scale or DEFAULT_SCALE
        fit = fit_study(study, store.runs(study.id), scale, earlier)
        store.add_fit(study.id, scale=fit.scale, refusal=fit.refusal, record=fit.to_dict())
    return SearchOutcome(
        study_name=study.name,
        best=best,
        fit=fit,
        n_finished=sum(r.status.is_finished for r in store.runs(study.id, kind=RunKind.TRIAL)),
        n_rejected=len(store.rejections(study.id)),
        reason=reason,
        finished=finished,
    )
