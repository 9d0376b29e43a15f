"""A search: propose, admit, dispatch, tell; and the same again after any interruption.

The study row keeps what decides the outcome (budget, convention, sampler, seed, space, the fixed
run settings with the exact data). The same command again finds it and goes on; a command that
would change it is refused, because its trials could not be compared.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from budgetsweep.constraint import Admitted, Limits, admit
from budgetsweep.errors import ConfigError, Reason, StudyError
from studies.database.connection import storage_url
from studies.database.run_kind import RunKind
from studies.database.store import Store
from studies.database.study_settings import differences
from studies.database.tables import Run, Study
from studies.execution.base import Executor
from studies.execution.dispatcher import Dispatcher
from studies.execution.training import check_same_data
from studies.planning import TimePlan, plan_time
from studies.prior_studies import base_with_prior_studies, prior_runs
from studies.promotion.finalists import train_finalists
from studies.promotion.promote import DEFAULT_SCALE, PromoteHooks
from studies.samplers.base import SearchProblem
from studies.samplers.proposals import Proposals
from studies.scaling.prediction import StudyFit, fit_study, promoted
from studies.settings import SearchSettings
from studies.space.defaults import first_proposal
from studies.space.sample import PLAN_SAMPLES, sample_space
from studies.space.search_space import SearchSpace
from studies.trials import TrialSource, reconcile
from trainer.config import TOKENIZER_VOCABULARIES
from trainer.data.facts import DataFacts


@dataclass
class Hooks(PromoteHooks):
    """How a search talks to its caller, its finalists included."""

    confirm: Callable[[TimePlan], bool] = lambda _: True
    """Asked once before the first trial, with the measured time; False: do not start."""


@dataclass(frozen=True)
class SearchOutcome:
    """Where a search stands when it returns."""

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
        executor: Executor | None = None
        if settings.names_device:  # which may be missing: that leaves no new database behind
            executor = stack.enter_context(settings.backend.executor(settings.asked_workers))
            executor.device()
        # So with prior studies: they are in the database already.
        store = Store.open(settings.storage, create=not settings.points_from)
        stack.callback(store.close)
        study = _open_study(store, settings, space, base)
        store.acquire_lease(study.id)
        stack.callback(store.release_lease, study.id)
        if executor is None:
            executor = stack.enter_context(settings.backend.executor(settings.asked_workers))
        else:
            stack.callback(executor.close)  # before the lease is given back
        return _search(store, study, settings, space, executor, hooks)


def _check_base(base: Mapping[str, Any], space: SearchSpace, settings: SearchSettings) -> None:
    """Refuse a wrong `--set` or a space with nothing in it before anything is written."""
    limits = Limits(settings.budget_flops, settings.convention)
    sample = sample_space(space, base, limits, PLAN_SAMPLES, settings.seed)
    if sample.admitted:
        return
    over = [answer for answer in sample.rejected if answer.reason == Reason.OVER_BUDGET]
    nearest = min(over or sample.rejected[:1], key=lambda answer: answer.excess or 0.0)
    raise ConfigError(
        f"none of {PLAN_SAMPLES} random proposals is admitted; the nearest: {nearest.detail}"
    )


def _open_study(
    store: Store, settings: SearchSettings, space: SearchSpace, base: dict[str, Any]
) -> Study:
    asked = settings.of_study(space, base)
    study = store.find_study(settings.study_name)
    if study is None:
        base = base_with_prior_studies(store, settings.study_name, asked)
        return store.create_study(settings.study_name, asked.model_copy(update={"base": base}))
    for what, (old, new) in differences(study.settings, asked).items():
        shown = f" ({old!r}, now {new!r})" if len(repr(old)) + len(repr(new)) < 80 else ""
        raise StudyError(
            f"study {study.name!r} was made with another {what}{shown}; its trials could not "
            "be compared. Give the same as before, or another name with --study"
        )
    if study.settings.location != asked.location:  # the file was moved
        moved = study.settings.model_copy(update={"location": asked.location})
        store.update_settings(study.id, moved)
        return store.study(study.name)
    return study


def _search(
    store: Store,
    study: Study,
    settings: SearchSettings,
    space: SearchSpace,
    executor: Executor,
    hooks: Hooks,
) -> SearchOutcome:
    study, data = _fix_data(store, study, space, settings, hooks)
    base = study.settings.base
    proposals = Proposals(
        storage_url(settings.storage) if settings.backend.keeps_sampler_state else None,
        study.name,
        _problem(space, study, settings),
        settings.sampler,
        settings.pruning,
    )
    try:
        prior = prior_runs(store, study, cache_dir=settings.cache_dir)
        for name, runs in prior.items():
            hooks.observer.message(
                f"{len(runs)} complete runs of {name} are data points of the fit too"
            )
        for line in (f"data: {data.description}", *settings.backend.notes):
            hooks.observer.message(line)
        reconcile(store, study, proposals)
        source = TrialSource(
            store, study, settings, space, data, proposals, hooks.observer, executor,
            hooks.should_stop,
        )  # fmt: skip
        if source.reason_to_stop() is None and not hooks.should_stop():
            if not source.recovered and not store.runs(study.id, kind=RunKind.TRIAL):
                plan = _announce(settings, space, base, source.limits, executor, hooks)
                if plan is not None and not hooks.confirm(plan):
                    return _outcome(store, study, settings, "not started", finished=False)
            executor.start_all()
            finished = Dispatcher(
                store, study, executor, source, hooks.observer,
                should_stop=lambda: hooks.should_stop() or source.out_of_time(),
                should_kill=hooks.should_kill, pruning=settings.pruning,
            ).run()  # fmt: skip
        else:
            finished = True
        missing = None
        if finished and not source.out_of_time() and not hooks.should_stop():
            missing = train_finalists(store, study, settings, executor, hooks, source.out_of_time)
        reason = source.reason_to_stop() or ("interrupted" if not finished else "done")
        finished = finished and missing is None and not source.out_of_time()
        return _outcome(store, study, settings, missing or reason, finished=finished)
    finally:
        proposals.close()


def _fix_data(
    store: Store, study: Study, space: SearchSpace, settings: SearchSettings, hooks: Hooks
) -> tuple[Study, DataFacts]:
    """The study's data, prepared; the first time they are written into its row."""
    data, facts = settings.backend.fix_data(study, space, settings.asked_workers, hooks.on_prepare)
    if study.val_checksum is not None:
        check_same_data(study, facts)
        return study, facts
    base = {**study.settings.base, "data": dict(data)}
    store.set_study_data(study.id, facts, study.settings.model_copy(update={"base": base}))
    return store.study(study.name), facts


def _problem(space: SearchSpace, study: Study, settings: SearchSettings) -> SearchProblem:
    """What a sampler knows of the search."""
    limits = Limits(study.budget_flops, study.convention)
    base, scale = study.settings.base, study.settings.for_scale
    return SearchProblem(
        space=space,
        limits=limits,
        base=base,
        seed=settings.seed,
        first=_first(space, base, limits, settings),
        promoted=None if scale is None else lambda config: promoted(study, config, scale),
        sizes_only=settings.backend.sizes_only,
    )


def _first(
    space: SearchSpace, base: Mapping[str, Any], limits: Limits, settings: SearchSettings
) -> dict[str, Any] | None:
    """The known-good first proposal, unless the constraint refuses it."""
    own = settings.backend.first_proposal(space, limits.budget_flops)
    if own is not None:
        return own
    n_vocab = TOKENIZER_VOCABULARIES[base["tokenizer_encoding"]]
    first = first_proposal(space, limits.budget_flops, n_vocab, limits.convention)
    answer = admit(space.run_data(first, base), limits)
    return first if isinstance(answer, Admitted) else None


def _announce(
    settings: SearchSettings,
    space: SearchSpace,
    base: Mapping[str, Any],
    limits: Limits,
    executor: Executor,
    hooks: Hooks,
) -> TimePlan | None:
    """Measure the device and say what a trial and the search will take; None: nobody knows."""
    sample = sample_space(space, base, limits, PLAN_SAMPLES, settings.seed)
    if not sample.admitted:
        (reason, _), *_ = sample.reasons().most_common(1)
        raise ConfigError(
            f"no configuration of the space fits this device and data; {sample.example(reason)}"
        )
    if executor.device() is None:
        return None
    plan = plan_time(settings, sample, executor)
    if isinstance(plan, str):
        hooks.observer.message(f"the speed of this device could not be measured: {plan}")
        return None
    return plan


def _outcome(
    store: Store, study: Study, settings: SearchSettings, reason: str, *, finished: bool
) -> SearchOutcome:
    best, fit = store.best_run(study.id), None
    if best is not None:
        prior = prior_runs(store, study, cache_dir=settings.cache_dir)
        scale = settings.for_scale or DEFAULT_SCALE
        fit = fit_study(study, store.runs(study.id), scale, prior)
        store.add_fit(study.id, scale=fit.scale, refusal=fit.refusal, record=fit.to_dict())
    return SearchOutcome(
        best=best,
        fit=fit,
        n_finished=sum(r.status.is_finished for r in store.runs(study.id, kind=RunKind.TRIAL)),
        n_rejected=len(store.rejections(study.id)),
        reason=reason,
        finished=finished,
    )
