"""The state of a training run between two optimiser steps, and what is done to it.

Steps may still be on their way when they count as taken (`trainer.optimizer_steps`). Before
anything is evaluated, reported or saved they are waited for, and a loss or gradient that is not
finite ends the run.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from trainer.checkpoints import checkpoint
from trainer.checkpoints.artefacts import write_artefacts
from trainer.config import RunConfig
from trainer.data.shards.tokens import TokenData
from trainer.evaluation import Validation
from trainer.events import Checkpointed, Command, Point, Progress, RunResult, RunStatus
from trainer.flop_meter import FlopMeter
from trainer.hardware.compilation import training_forward, wants_compile
from trainer.hardware.device import (
    autocast_context,
    device_name,
    peak_memory_bytes,
    random_state,
    set_random_state,
    start_peak_memory,
    uses_bf16,
)
from trainer.hardware.process_memory import keep_freed_memory, release_freed_memory
from trainer.objectives import objective_for
from trainer.optim import build_optimizer
from trainer.optim.schedules import fractions
from trainer.optimizer_steps import Steps, Training, steps_of

PROGRESS_SECONDS = 1.0
TRIM_SECONDS = 30.0
"""A trim costs 0.05 to 0.3 s, for the pages that the next step touches anew (one thread)."""

logger = logging.getLogger("budgetsweep")


class RunState:
    """State of a run between two optimiser steps."""

    def __init__(
        self, config: RunConfig, data: TokenData, run_dir: Path, device: torch.device
    ) -> None:
        """Claim the folder; nothing large is made yet."""
        self.flops_per_step = config.flops_per_step(config.convention)
        planned = self.flops_per_step * config.steps
        try:
            run_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise checkpoint.cannot_write(run_dir, error) from error
        self.meter = FlopMeter(run_dir, self.flops_per_step, config.budget_flops or planned)
        self.config, self.data, self.run_dir, self.device = config, data, run_dir, device
        self.config_hash = checkpoint.run_hash(config)
        self.compiled = wants_compile(config, device)
        self.step = 0
        self.points: list[Point] = []
        self.validation: Validation | None = None
        self.validated_step = 0
        self.saved_step: int | None = None
        self.train_seconds = self.eval_seconds = 0.0
        self.loss_sum, self.loss_count = 0.0, 0  # since the last point
        self.norm: float | None = None
        self.steps: Steps | None = None
        self.eval_steps = fractions(config.steps, config.num_evals)
        self.point_steps = fractions(config.steps, config.num_reports) | self.eval_steps

    def start(self) -> None:
        """Make model and optimiser, from the latest checkpoint if there is one."""
        config, device = self.config, self.device
        keep_freed_memory()
        start_peak_memory(device)
        torch.manual_seed(config.seed)
        self.objective = objective_for(config, device)
        self.objective.read(self.data)
        self.model = self.objective.build_model()
        self.optimizer = build_optimizer(self.model, config, device)
        self.get_lr = config.lr_schedule()
        self.autocast = autocast_context(config, device)
        state = checkpoint.load_latest(self.run_dir, self.config_hash)
        if state is not None:
            self._restore(state)
        forward = training_forward(self.model, self.compiled)
        training = Training(
            config, device, self.objective, self.model, forward, self.optimizer, self.autocast
        )
        self.steps = steps_of(training, self.step)
        self.saved_at = self.trimmed_at = time.monotonic()
        self.reported_at, self.reported_step = -math.inf, self.step
        self.reported_seconds = self.train_seconds

    def evaluation_is_due(self) -> bool:
        """A validation pass belongs to this step and has not been made."""
        return self.step in self.eval_steps and self.validated_step != self.step

    def point_is_due(self) -> bool:
        """A point of the curves belongs to this step and has not been made."""
        last = self.points[-1].step if self.points else 0
        return self.step in self.point_steps and last != self.step

    def progress_is_due(self) -> bool:
        """The last `Progress` is a second old."""
        return time.monotonic() - self.reported_at >= PROGRESS_SECONDS

    def checkpoint_is_due(self) -> bool:
        """The last checkpoint is old enough, and something has been done since."""
        unsaved = self.saved_step != self.step and 0 < self.step < self.config.steps
        return unsaved and time.monotonic() - self.saved_at >= self.config.checkpoint_seconds

    def trim_heap(self) -> None:
        """Give what earlier steps freed back to the system, on a CPU.

        The places of a step's tensors wander through the heap, and every page they have touched
        stays: without this the peak grows for hundreds of steps.
        """
        if self.device.type == "cpu":
            release_freed_memory()
        self.trimmed_at = time.monotonic()

    def trim_is_due(self) -> bool:
        """The heap has not been trimmed for `TRIM_SECONDS`."""
        return time.monotonic() - self.trimmed_at >= TRIM_SECONDS

    def train_step(self) -> None:
        """One optimiser step: all micro-batches, finite or not, clip, update."""
        assert self.steps is not None
        with self._clock("train_seconds"):
            self.steps.take(self.step)
            self.step += 1

    def collect(self) -> None:
        """Wait for the steps taken and count their losses; errors as in `Steps.take`."""
        assert self.steps is not None
        with self._clock("train_seconds"):
            finished = self.steps.collect()
        for loss in finished.losses:  # in this order, wherever a run is interrupted
            self.loss_sum += loss
        self.loss_count += len(finished.losses)
        self.norm = finished.norm

    def evaluate(self) -> None:
        """The validation pass of this step."""
        self.collect()
        with self._clock("eval_seconds"):
            # Before and after: what a step has freed would stay beside the batches, and what they
            # have freed beside the next step.
            self.trim_heap()
            self.validation = self.objective.validate(self.model, self.autocast)
            self.trim_heap()
        self.validated_step = self.step
        if not math.isfinite(self.validation.loss_nats):
            raise FloatingPointError(
                f"validation loss became {self.validation.loss_nats} at step {self.step}"
            )

    def point(self) -> Point:
        """The point of the curves at this step."""
        self.collect()
        validation = self.validation if self.validated_step == self.step else None
        point = Point(
            step=self.step,
            tokens=self.step * self.config.tokens_per_step,
            flops=self.step * self.flops_per_step,
            seconds=self.train_seconds,
            train_loss_nats=self.loss_sum / self.loss_count if self.loss_count else None,
            val_loss_nats=validation.loss_nats if validation else None,
            lr=self.get_lr(self.step - 1),
            grad_norm=self.norm,
        )
        self.loss_sum, self.loss_count = 0.0, 0
        self.points.append(point)
        return point

    def progress(self) -> Progress:
        """Where the run is now, with its speed since the last time."""
        per_step = self.config.tokens_per_step
        seconds = self.train_seconds - self.reported_seconds
        tokens = (self.step - self.reported_step) * per_step
        self.reported_at, self.reported_step = time.monotonic(), self.step
        self.reported_seconds = self.train_seconds
        speed = tokens / seconds if seconds > 0 else 0.0
        return Progress(self.step, self.config.steps, self.step * per_step, speed)

    def save(self) -> Checkpointed:
        """Write a checkpoint of this step, unless there is one."""
        if self.saved_step != self.step:
            self.collect()
            checkpoint.save(self.run_dir, self._state(), self.step)
            self.saved_at, self.saved_step = time.monotonic(), self.step
        return Checkpointed(self.step, self.meter.executed_steps)

    def _state(self) -> dict[str, Any]:
        return {
            "config_hash": self.config_hash,
            "data_checksum": self.data.data_checksum,
            "step": self.step,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "random": random_state(self.device),
            "points": [dataclasses.asdict(point) for point in self.points],
            "validation": dataclasses.asdict(self.validation) if self.validation else None,
            "validated_step": self.validated_step,
            "loss_sum": self.loss_sum,
            "loss_count": self.loss_count,
            "train_seconds": self.train_seconds,
            "eval_seconds": self.eval_seconds,
        }

    def finish(self, command: Command | None) -> RunResult:
        """End the run as the command says; without one it is complete."""
        if command == "interrupt":
            return self.result(RunStatus.INTERRUPTED)
        if command == "prune":
            result = self.result(RunStatus.PRUNED)
        else:
            facts = {
                "data_checksum": self.data.data_checksum,
                "val_checksum": self.data.val_checksum,
            }
            weights = {name: tensor.cpu() for name, tensor in self.model.state_dict().items()}
            result = write_artefacts(
                self.run_dir,
                self.config,
                weights,
                self.points,
                self.result(RunStatus.COMPLETE),
                facts,
            )
        checkpoint.remove_checkpoints(self.run_dir)
        return result

    def result(self, status: RunStatus, reason: str | None = None) -> RunResult:
        """What is known now, as a result."""
        validation = self.validation
        losses = [p.train_loss_nats for p in self.points if p.train_loss_nats is not None]
        return RunResult(
            status=status,
            step=self.step,
            steps_executed=self.meter.executed_steps,
            tokens=self.step * self.config.tokens_per_step,
            reason=reason,
            val_loss_nats=validation.loss_nats if validation else None,
            val_ppl=validation.ppl if validation else None,
            val_bits_per_byte=validation.bits_per_byte if validation else None,
            val_loss_stderr_nats=validation.stderr_nats if validation else None,
            val_tokens=validation.n_tokens if validation else None,
            train_loss_nats=losses[-1] if losses else None,
            train_seconds=self.train_seconds,
            eval_seconds=self.eval_seconds,
            peak_memory_bytes=peak_memory_bytes(self.device),
            device_name=device_name(self.device),
            precision="bf16" if uses_bf16(self.config, self.device) else "fp32",
            compiled=self.compiled,
        )

    def forget(self) -> None:
        """Leave nothing behind in a process that goes on to other runs."""
        self.steps = None  # a graph owns the memory of its step
        if self.compiled:
            torch.compiler.reset()  # of many shapes it would add up

    def _restore(self, state: dict[str, Any]) -> None:
        if state["data_checksum"] != self.data.data_checksum:
            logger.warning(
                "%s: the training text is not the one that this run started with; it goes on with "
                "the present one",
                self.run_dir,
            )
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = self.saved_step = state["step"]
        self.points = [Point(**point) for point in state["points"]]
        self.validation = Validation(**state["validation"]) if state["validation"] else None
        self.validated_step = state["validated_step"]
        self.loss_sum, self.loss_count = state["loss_sum"], state["loss_count"]
        self.train_seconds, self.eval_seconds = state["train_seconds"], state["eval_seconds"]
        set_random_state(self.device, state["random"])

    @contextmanager
    def _clock(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            setattr(self, name, getattr(self, name) + time.perf_counter() - start)
