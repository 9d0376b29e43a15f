"""A training run that costs nothing: the events of `trainer.loop.train_run` from a world's law.

No torch, no text, no weights. See `studies.simulation.worlds` for the losses and docs/simulation.md
for what they must not be used for.
"""

from __future__ import annotations

import math

from budgetsweep.errors import BudgetExceeded, NonFiniteLoss
from studies.simulation.worlds import SimulatedWorld
from trainer.config import RunConfig
from trainer.driver import RunEvents
from trainer.events import Command, Point, Progress, RunResult, RunStatus
from trainer.optim.schedules import fractions

DEVICE_NAME = "simulated"
"""What stands where a real run names its device."""
TRAIN_JITTER_NATS = 0.01
"""Standard deviation of a training loss around the curve (*assumption*)."""


def simulate_run(config: RunConfig, world: SimulatedWorld) -> RunEvents:
    """Simulate one filled configuration, from its beginning; `world`'s law gives the losses.

    A generator of the events of `trainer.loop.train_run`, checkpoints left out: an interrupted run
    begins anew, which costs nothing. A learning rate far too high fails as it would in earnest.
    """
    run = _SimulatedRun(config, world)
    command: Command | None = None
    for step in sorted(run.point_steps):
        if run.diverging_step is not None and step >= run.diverging_step:
            reason = str(NonFiniteLoss(run.diverging_step, math.nan))
            return run.result(RunStatus.FAILED, run.diverging_step, reason)
        point = run.point(step)
        if point.val_loss_nats is not None:
            command = (yield Progress(step, config.steps, point.tokens, 0.0)) or command
        command = (yield point) or command
        if command is not None and step < config.steps:
            pruned = command == "prune"
            return run.result(RunStatus.PRUNED if pruned else RunStatus.INTERRUPTED, step)
    return run.result(RunStatus.COMPLETE, config.steps)


class _SimulatedRun:
    """The curve of one run."""

    def __init__(self, config: RunConfig, world: SimulatedWorld) -> None:
        self.config, self.world = config, world
        self.flops_per_step = config.flops_per_step(config.convention)
        planned = self.flops_per_step * config.steps
        if planned > (config.budget_flops or planned):
            raise BudgetExceeded(f"{planned:.6g} training FLOPs of {config.budget_flops:.6g}")
        self.diverging_step = world.diverging_step(config)
        self.eval_steps = fractions(config.steps, config.num_evals)
        self.point_steps = fractions(config.steps, config.num_reports) | self.eval_steps
        self.last: Point | None = None
        self.val_loss: float | None = None
        self._get_lr = config.lr_schedule()
        self._settings_nats = world.settings_nats(config)
        self._rng = world.random_of(config)
        self._noise = float(self._rng.standard_normal())  # the same as `world.seed_noise(config)`

    def loss(self, step: int) -> float:
        """What this seed would measure after a step."""
        tokens = float(step * self.config.tokens_per_step)
        peak = self.config.max_lr
        rate = self._get_lr(step) / peak if peak > 0.0 else 1.0
        true = self.world.loss_at(self.config, tokens, rate, self._settings_nats)
        return true + self._noise * self.world.noise_sd(tokens)

    def point(self, step: int) -> Point:
        """The point of the curves after a step."""
        last = self.last.step if self.last is not None else 0
        jitter = TRAIN_JITTER_NATS * float(self._rng.standard_normal())
        if step in self.eval_steps:
            self.val_loss = self.loss(step)
        self.last = Point(
            step=step,
            tokens=step * self.config.tokens_per_step,
            flops=step * self.flops_per_step,
            seconds=0.0,
            train_loss_nats=self.loss((last + step + 1) // 2) + jitter,
            val_loss_nats=self.val_loss if step in self.eval_steps else None,
            lr=self._get_lr(step - 1),
        )
        return self.last

    def result(self, status: RunStatus, step: int, reason: str | None = None) -> RunResult:
        """How it ended; an interrupted run keeps nothing of its steps."""
        executed, loss = step, self.val_loss
        if status == RunStatus.FAILED:
            step -= 1  # the step whose loss was NaN was computed and changed nothing
        if status == RunStatus.INTERRUPTED:
            step, loss = 0, None
        return RunResult(
            status=status,
            step=step,
            steps_executed=executed,
            tokens=step * self.config.tokens_per_step,
            reason=reason,
            val_loss_nats=loss,
            val_ppl=None if loss is None else math.exp(loss),
            train_loss_nats=None if self.last is None else self.last.train_loss_nats,
            device_name=DEVICE_NAME,
        )
