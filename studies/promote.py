"""The promotion: the best trial's shape, trained with a multiple of its budget.

What changes with the length of the run follows the rule of `rescale`; the shape never does.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from budgetsweep.config import apply_overrides, parse
from budgetsweep.constraint import (
    Admitted,
    Limits,
    Rejected,
    admit,
    affordable_steps,
    uses_bf16,
)
from budgetsweep.errors import ConfigError, StudyError
from studies.dispatcher import LEASE_SECONDS, Dispatcher, recover
from studies.executor import WorkerPool
from studies.observer import Observer
from studies.planning import Sample, Speed, measure_speed
from studies.settings import runs_folder
from studies.simulated_pool import SimulatedPool
from studies.storage import storage_url
from studies.store import Store, config_hash
from studies.tables import FINISHED_STATUSES, Run, Study
from trainer.config import RunConfig
from trainer.events import Point, RunResult
from trainer.memory import estimate_memory_bytes
from trainer.simulated import SimulatedData, simulated_data
from trainer.worlds import world_of

if TYPE_CHECKING:
    from trainer.prepare import PrepareProgress
    from trainer.tokens import TokenData

BATCH_EXPONENT = 0.45
LR_EXPONENT = -0.32
MIN_BETA2 = 0.9


@dataclass(frozen=True)
class Rescaling:
    """Factors for a run of `tokens_ratio` times the tokens at the same shape."""

    tokens_ratio: float
    batch_factor: int
    lr_factor: float
    beta2: float


def rescale(tokens_ratio: float, beta2: float) -> Rescaling:
    """How batch, learning rate and beta2 follow the training tokens at a fixed shape.

    Batch: B ∝ D^0.45, the middle of published exponents 0.38 to 0.57 (DeepSeek LLM 2024; StepLaw,
    Li et al. 2025), rounded to a whole factor. Learning rate: ∝ D^-0.32 at a fixed batch
    (Bjorck et al. 2024), times sqrt of the batch factor (Adam's square-root rule, Malladi et al.
    2022). beta2 keeps its half-life in tokens, but stays at least 0.9 (*assumption*). Weight decay,
    the warm-up in steps and the ratio of final to peak learning rate stay.

    Args:
        tokens_ratio: tokens of the long run, of the short one; at least 1 changes anything.
        beta2: Adam's second decay of the short run.
    """
    ratio = max(1.0, tokens_ratio)
    factor = max(1, round(ratio**BATCH_EXPONENT))
    return Rescaling(
        tokens_ratio=tokens_ratio,
        batch_factor=factor,
        lr_factor=ratio**LR_EXPONENT * math.sqrt(factor),
        beta2=min(beta2, max(MIN_BETA2, beta2**factor)),
    )


@dataclass(frozen=True)
class PromoteSettings:
    """What the user asked for."""

    storage: str | Path = "budgetsweep.db"
    study: str | None = None
    trial: int | None = None
    """None: the best complete trial."""
    scale: float = 100.0
    device: str = "auto"
    output_dir: Path | None = None
    overrides: tuple[str, ...] = ()
    runs_dir: Path | None = None
    cache_dir: Path | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise ConfigError("--scale: expected a number above 0, such as 100")


@dataclass(frozen=True)
class PromotionPlan:
    """What a promotion will do, said before it starts."""

    trial: Run
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


def _go_ahead(plan: PromotionPlan) -> bool:
    del plan
    return True


@dataclass
class PromoteHooks:
    """How a promotion talks to its caller."""

    observer: Observer = field(default_factory=Observer)
    should_stop: Callable[[], bool] = lambda: False
    should_kill: Callable[[], bool] = lambda: False
    on_plan: Callable[[PromotionPlan], bool] = _go_ahead
    """Shown before training; False: do not start."""
    on_prepare: Callable[[PrepareProgress], None] | None = None


@dataclass(frozen=True)
class PromotionOutcome:
    """How a promotion ended; `run` is None when it was not started."""

    trial: Run
    run: Run | None


def promote(settings: PromoteSettings, hooks: PromoteHooks) -> PromotionOutcome:
    """Train the best trial's model with `scale` times its budget, or continue doing so.

    Raises:
        UserError: no such study or trial, too little data or memory.
    """
    store = Store.open(settings.storage)
    try:
        study = store.study(settings.study)
        trial = _choose(store, study, settings.trial)
        store.acquire_lease(study.id, seconds=LEASE_SECONDS)
        try:
            with _pool(study, settings) as pool:
                return _promote(store, study, trial, settings, pool, hooks)
        finally:
            store.release_lease(study.id)
    finally:
        store.close()


def _pool(study: Study, settings: PromoteSettings) -> WorkerPool | SimulatedPool:
    if world_of(study.settings["base"]) is not None:
        return SimulatedPool(1, artefacts=True)
    return WorkerPool(1, device=settings.device, cache_dir=settings.cache_dir)


def _choose(store: Store, study: Study, number: int | None) -> Run:
    if number is None:
        best = store.best_run(study.id)
        if best is None:
            raise StudyError(
                f"study {study.name!r} has no complete trial yet; run `budgetsweep search` first"
            )
        return best
    for run in store.runs(study.id, kind="trial"):
        if run.number == number:
            if run.status != "complete":
                raise StudyError(f"trial {number} is {run.status}; choose a complete one")
            return run
    raise StudyError(f"study {study.name!r} has no trial {number}; `budgetsweep status` lists them")


def promoted_config(
    trial: RunConfig, budget_flops: int, overrides: tuple[str, ...], limits: Limits
) -> tuple[RunConfig, Rescaling]:
    """The configuration of the long run, steps still to be filled.

    The micro-batch grows as far as the device's memory allows; the rest of the larger batch is
    gradient accumulation.

    Raises:
        ConfigError: an override that changes the model's shape, or is not valid.
    """
    tokens = affordable_steps(trial, budget_flops, limits.convention) * trial.tokens_per_step
    rescaling = rescale(tokens / trial.total_tokens, trial.beta2)
    accumulate = _accumulation(trial, rescaling.batch_factor, limits)
    data = trial.to_dict()
    data.update(
        num_training_steps="fill",
        budget_flops=budget_flops,
        convention=limits.convention,
        batch_size=trial.batch_size * rescaling.batch_factor // accumulate,
        grad_accumulation_steps=trial.grad_accumulation_steps * accumulate,
        max_lr=float(f"{trial.max_lr * rescaling.lr_factor:.4g}"),
        min_lr=float(f"{trial.final_lr * rescaling.lr_factor:.4g}"),
        beta2=float(f"{rescaling.beta2:.4g}"),
    )
    data["data"].pop("train_tokens", None)
    for override in overrides:
        # A share given by hand replaces the number that the rule would have kept.
        for share, number in (("min_lr_ratio", "min_lr"), ("warmup_fraction", "num_warmup_steps")):
            if override.startswith(f"{share}="):
                data.pop(number, None)
    config = parse(RunConfig, apply_overrides(data, overrides), "promotion")
    if (config.trainer, config.world) != (trial.trainer, trial.world):
        raise ConfigError("--set: a promotion is trained as its trial was, simulated or not")
    if config.model.model_copy(update={"p_dropout": trial.model.p_dropout}) != trial.model:
        raise ConfigError("--set: a promotion keeps the model's shape; only p_dropout may change")
    return config, rescaling


def _accumulation(trial: RunConfig, factor: int, limits: Limits) -> int:
    """The smallest divisor of `factor` whose micro-batch fits the device's memory."""
    if limits.device is None:
        return 1
    for pieces in range(1, factor + 1):
        if factor % pieces:
            continue
        config = trial.with_changes(batch_size=trial.batch_size * factor // pieces)
        memory = estimate_memory_bytes(config, limits.device.kind, bf16=uses_bf16(config, limits))
        if memory <= limits.device.memory_bytes:
            return pieces
    return factor


def _promote(
    store: Store,
    study: Study,
    trial: Run,
    settings: PromoteSettings,
    pool: WorkerPool | SimulatedPool,
    hooks: PromoteHooks,
) -> PromotionOutcome:
    original = parse(RunConfig, trial.config, f"trial {trial.number}")
    budget = int(settings.scale * study.budget_flops)
    limits = Limits(budget, study.convention, pool.device())  # type: ignore[arg-type]
    wanted, rescaling = promoted_config(original, budget, settings.overrides, limits)
    wanted = wanted.with_changes(device=settings.device)
    admitted = _admitted(wanted, limits)
    fixed, opened = _with_text(study, wanted, admitted.config.wanted_train_tokens, settings, hooks)
    if opened.val_checksum != study.val_checksum:
        raise StudyError(
            f"the validation text is not that of study {study.name!r} any more (its checksum "
            "differs), so the promoted loss could not be compared; restore the data"
        )
    admitted = _admitted(fixed, limits.with_data(opened))
    run = _find_or_add(store, study, trial, settings, admitted, opened.data_checksum)
    plan = PromotionPlan(
        trial=trial,
        config=parse(RunConfig, run.config, "promotion"),
        budget_flops=budget,
        charge_flops=admitted.charge_flops,
        rescaling=rescaling,
        changes=run.params,
        epochs=admitted.epochs,
        memory_bytes=admitted.memory_bytes,
        seconds=_seconds(admitted, pool),
        resumed_at_step=run.step,
    )
    if run.status == "complete" or not hooks.on_plan(plan):
        return PromotionOutcome(trial, run)
    pool.start_all()
    source = _OneRun(run)
    Dispatcher(
        store, study, pool, source, hooks.observer,
        should_stop=hooks.should_stop, should_kill=hooks.should_kill,
    ).run()  # fmt: skip
    return PromotionOutcome(trial, store.run(run.id))


def _with_text(
    study: Study,
    wanted: RunConfig,
    train_tokens: int | None,
    settings: PromoteSettings,
    hooks: PromoteHooks,
) -> tuple[RunConfig, TokenData | SimulatedData]:
    """The configuration with its text fixed, and the text; a simulated run has none."""
    if wanted.trainer == "simulated":
        return wanted, simulated_data(wanted.world)
    from trainer.prepare import open_prepared, prepare

    data = prepare(
        wanted.data,
        wanted.tokenizer_encoding,
        train_tokens=train_tokens,
        val_tokens=study.val_tokens,
        cache_dir=settings.cache_dir,
        on_progress=hooks.on_prepare,
    )
    fixed = wanted.with_changes(data=wanted.data.fixed_to(data, train_tokens, study.val_tokens))
    return fixed, open_prepared(fixed.data, fixed.tokenizer_encoding, settings.cache_dir)


def _admitted(config: RunConfig, limits: Limits) -> Admitted:
    answer = admit(config, limits)
    if isinstance(answer, Rejected):
        advice = {
            "too_many_epochs": "give more text, a smaller --scale, or --set data.max_epochs=N",
            "out_of_memory": "set a smaller batch with --set batch_size=N",
        }.get(answer.reason.value, "choose another --scale or --set")
        raise ConfigError(f"the promotion is refused: {answer.detail}; {advice}")
    return answer


def _seconds(admitted: Admitted, pool: WorkerPool | SimulatedPool) -> float | None:
    if isinstance(pool, SimulatedPool):
        return None
    seconds = min(2.0, max(0.05, admitted.charge_flops / 1e12))
    speed = measure_speed(
        Sample([admitted], []), pool.measure, pool.device().name, seconds_each=seconds
    )
    return speed.seconds(admitted.config) if isinstance(speed, Speed) else None


def _find_or_add(
    store: Store,
    study: Study,
    trial: Run,
    settings: PromoteSettings,
    admitted: Admitted,
    data_checksum: str,
) -> Run:
    """The unfinished or complete promotion of just this configuration, or a new one."""
    earlier = store.runs(study.id, kind="promotion")
    digest = config_hash(admitted.config)
    for run in earlier:
        if run.config_hash == digest and run.parent_run_id == trial.id and run.status != "failed":
            recover(store, study)
            return store.run(run.id)
    number = max((run.number for run in earlier), default=-1) + 1
    folder = runs_folder(storage_url(settings.storage), settings.runs_dir) / study.name
    output_dir = settings.output_dir or folder / f"promotion-{number:03d}"
    config = admitted.config.with_changes(output_dir=str(output_dir.absolute()))
    run_id = store.add_run(
        study_id=study.id,
        kind="promotion",
        number=number,
        params=_differences(parse(RunConfig, trial.config, "trial"), config),
        config=config,
        budget_flops=admitted.config.budget_flops or 0,
        data_checksum=data_checksum,
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


class _OneRun:
    """A run source with a single run."""

    def __init__(self, run: Run) -> None:
        self._run: Run | None = run if run.status not in FINISHED_STATUSES else None

    def next_run(self) -> Run | None:
        """The run, once."""
        run, self._run = self._run, None
        return run

    def meanwhile(self) -> None:
        """Nothing is kept beside the run's own row."""

    def validated(self, run: Run, fraction: float, point: Point) -> bool:
        """A promotion is never pruned."""
        del run, fraction, point
        return False

    def finished(self, run: Run, result: RunResult) -> None:
        """Nobody else needs to know."""
        del run, result
