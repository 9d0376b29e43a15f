"""Optimiser steps: each waited for, or queued on a GPU.

**Finite or not.** A loss or a gradient that is not finite ends the run and names its step. On a CPU
both are known before the weights are touched. On CUDA asking for them would stall the device
at each step: there they are logged where they are and read every `LOGGED_STEPS` steps and before
anything is evaluated, reported or saved. Steps may be taken in vain then, but are never used.

**One launch a step.** A training step of a small model is a thousand kernels of a few microseconds
each, and launching one takes as long. On CUDA the whole step, from gathering its windows to the
update, is captured once as a graph and launched as a whole. What differs from step to step lies in
tensors that are written before the launch: where windows begin, which vocabulary entries a sampled
softmax draws, the learning rate. Shapes are those of the run, so a graph serves for all of it.
"""

from __future__ import annotations

import functools
import gc
import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from budgetsweep.errors import NonFiniteLoss
from trainer.config import RunConfig
from trainer.hardware.device import is_out_of_memory, random_state, set_random_state
from trainer.objectives import Forward, Objective
from trainer.optim.joined import AnyOptimizer

LOGGED_STEPS = 64
"""Steps whose losses wait on the device; their inputs are uploaded together too."""
LEAST_CAPTURED_STEPS = 32
"""A shorter rest of a run is not worth a capture and its warm-up (*assumption*)."""
WARMUP_STEPS = 3
"""Steps before a capture, which must find libraries loaded and states allocated."""

logger = logging.getLogger("budgetsweep")

Replay = Callable[[], None]
Capture = Callable[[Callable[[], None], torch.device], Replay]


@dataclass(frozen=True)
class Training:
    """What a step works on."""

    config: RunConfig
    device: torch.device
    objective: Objective[Any]
    model: nn.Module
    forward: Forward
    optimizer: AnyOptimizer
    autocast: AbstractContextManager[Any]

    def backward(self, batches: Callable[[int], Any]) -> Tensor:
        """Gradients of all micro-batches, numbered from 0; their losses (M,), without gradients."""
        micro_batches = self.config.grad_accumulation_steps
        losses = []
        for micro in range(micro_batches):
            batch = batches(micro)
            with self.autocast:
                loss = self.objective.loss(self.forward, self.model, batch)
            losses.append(loss.detach())
            torch.autograd.backward(loss / micro_batches)
        return torch.stack(losses)

    @functools.cached_property
    def parameters(self) -> list[nn.Parameter]:
        """The model's."""
        return list(self.model.parameters())

    def clip(self) -> Tensor:
        """Clip the gradient; its norm before, a scalar on the device."""
        if self.config.grad_clip is not None:
            return torch.nn.utils.clip_grad_norm_(self.parameters, self.config.grad_clip)
        return torch.nn.utils.get_total_norm(
            [p.grad for p in self.parameters if p.grad is not None]
        )

    def update(self) -> None:
        """Move the parameters and forget the gradients."""
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


class FinishedSteps(NamedTuple):
    """Steps that have been computed and were finite."""

    losses: list[float]
    """Mean training loss of each step since the last time, in nats."""
    norm: float | None
    """Gradient norm of the last step before clipping; None: none was taken."""


class Steps(ABC):
    """Takes the optimiser steps of a run."""

    def __init__(self, training: Training) -> None:
        self.training = training
        self.get_lr = training.config.lr_schedule()
        self._losses: list[float] = []
        self._norm: float | None = None

    @abstractmethod
    def take(self, step: int) -> None:
        """Compute optimiser step `step` (from 0), or queue it on the device.

        Raises:
            NonFiniteLoss: the loss of a step so far is not finite.
            FloatingPointError: so with a gradient norm.
        """

    def collect(self) -> FinishedSteps:
        """What the steps since the last call gave; waits for them. Errors as `take`."""
        losses, self._losses = self._losses, []
        return FinishedSteps(losses, self._norm)

    def _note(self, step: int, loss: float, norm: float) -> None:
        if not math.isfinite(loss):
            raise NonFiniteLoss(step + 1, loss)
        if not math.isfinite(norm):
            raise FloatingPointError(f"gradient norm became {norm} at step {step + 1}")
        self._losses.append(loss)
        self._norm = norm


class BlockingSteps(Steps):
    """Each step ends before the next begins."""

    def take(self, step: int) -> None:
        """See `Steps.take`."""
        training = self.training
        losses = training.backward(lambda micro: training.objective.batch(step, micro))
        loss = float(losses.cpu().double().mean())
        self._note(step, loss, float(training.clip()) if math.isfinite(loss) else loss)
        for group in training.optimizer.param_groups:
            group["lr"] = self.get_lr(step)
        training.update()


class QueuedSteps(Steps):
    """Steps are queued on the device; where their inputs can be laid out there, as one graph."""

    def __init__(
        self, training: Training, first_step: int = 0, capture: Capture | None = None
    ) -> None:
        """Prepare; the optimiser, which has its state, gets one tensor for its learning rates.

        `capture` makes a step repeatable, as `cuda_graph` does; None: steps are queued operation by
        operation.
        """
        super().__init__(training)
        device = training.device
        self._lr = torch.zeros((), device=device)
        for group in training.optimizer.param_groups:
            group["lr"] = self._lr
            if "capturable" in group:  # a checkpoint of a CPU says no
                group["capturable"] = device.type == "cuda"
        self._log = torch.zeros(2, LOGGED_STEPS, dtype=torch.float64, device=device)
        self._place = torch.zeros(1, dtype=torch.int64, device=device)
        self._waiting: list[int] = []
        """Steps whose losses are in the log."""
        self._inputs: list[Tensor] = []
        self._ahead: list[Tensor] = []
        """Inputs of `LOGGED_STEPS` steps from `_ahead_from` on."""
        self._ahead_from = first_step
        self._replay: Replay | None = None
        self._capture = capture
        if training.config.steps - first_step < LEAST_CAPTURED_STEPS:
            self._capture = None

    def take(self, step: int) -> None:
        """See `Steps.take`; the step may still run when this returns."""
        if len(self._waiting) == LOGGED_STEPS:
            self._read_log()
        self._lr.fill_(self.get_lr(step))
        objective = self.training.objective
        if objective.gathers_on_device:
            self._lay_out(step)
            if self._capture is not None:
                self._replay, self._capture = self._captured(self._capture), None
            (self._replay or self._gathered_work)()
        else:
            self._work(lambda micro: objective.batch(step, micro))
        self._waiting.append(step)

    def collect(self) -> FinishedSteps:
        """See `Steps.collect`."""
        self._read_log()
        return super().collect()

    def _gathered_work(self) -> None:
        gather = self.training.objective.gather
        self._work(lambda micro: gather([each[micro] for each in self._inputs]))

    def _work(self, batches: Callable[[int], Any]) -> None:
        training = self.training
        loss = training.backward(batches).double().mean()
        loss_and_norm = torch.stack([loss, training.clip().double()])
        self._log.index_copy_(1, self._place, loss_and_norm[:, None])
        self._place += 1
        training.update()

    def _lay_out(self, step: int) -> None:
        """Put what differs from step to step where the step reads it."""
        at = step - self._ahead_from
        if not self._ahead or not 0 <= at < len(self._ahead[0]):
            count = min(LOGGED_STEPS, self.training.config.steps - step)
            arrays = self.training.objective.step_inputs(step, count)
            self._ahead = [torch.from_numpy(each).to(self.training.device) for each in arrays]
            self._ahead_from, at = step, 0
        if not self._inputs:
            self._inputs = [torch.empty_like(each[0]) for each in self._ahead]
        for static, ahead in zip(self._inputs, self._ahead, strict=True):
            static.copy_(ahead[at])

    def _read_log(self) -> None:
        if not self._waiting:
            return
        steps, self._waiting = self._waiting, []
        losses, norms = self._log[:, : len(steps)].tolist()
        self._place.zero_()
        for step, loss, norm in zip(steps, losses, norms, strict=True):
            self._note(step, loss, norm)

    def _captured(self, capture: Capture) -> Replay | None:
        """The step as a graph, everything as it was before; None where that cannot be had."""
        before = _Snapshot(self.training)
        try:
            return capture(self._gathered_work, self.training.device)
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            # Ending a capture that was broken raises too: what broke it is the context.
            cause = error.__context__ or error
            reason = str(cause).strip().splitlines() or [type(cause).__name__]
            logger.warning(
                "the training step cannot be captured as a CUDA graph (%s): the run goes on "
                "without one, slower; cuda_graph: off says so from the start", reason[0],
            )  # fmt: skip
            return None
        finally:
            before.restore()
            self._place.zero_()


class _Snapshot:
    """Parameters and the optimiser's state, to be put back in place."""

    def __init__(self, training: Training) -> None:
        self._training = training
        # On the CPU: the device has no room beside its step for a second model.
        self._before = [(each, each.detach().to("cpu", copy=True)) for each in self._tensors()]
        self._random = random_state(training.device)

    def restore(self) -> None:
        """Put back what was there; state that was made since is zero, as it is at first."""
        there = {id(tensor) for tensor, _ in self._before}
        with torch.no_grad():
            for tensor, value in self._before:
                tensor.copy_(value)
            for tensor in self._tensors():
                if id(tensor) not in there:
                    tensor.zero_()
        self._training.optimizer.zero_grad(set_to_none=True)
        set_random_state(self._training.device, self._random)

    def _tensors(self) -> list[Tensor]:
        states = self._training.optimizer.state.values()
        remembered = [value for state in states for value in state.values()]
        return [*self._training.parameters, *(t for t in remembered if isinstance(t, Tensor))]


def cuda_graph(work: Callable[[], None], device: torch.device) -> Replay:
    """Capture what `work` does on a GPU; the result does it again at one launch.

    `work` is run a few times before, on the stream of the capture (PyTorch's notes on CUDA graphs),
    at last so that waiting for the device is an error: a capture that breaks leaves PyTorch's
    allocator in a state that nothing repairs, so none is tried after it.

    Raises:
        RuntimeError: something in it cannot be captured, or could not be before in this process.
    """
    if _broken_captures:
        raise RuntimeError(f"in this process a capture broke before: {_broken_captures[0]}")
    with torch.cuda.device(device):
        stream, before = _capture_stream(device), torch.cuda.current_stream()
        stream.wait_stream(before)
        with torch.cuda.stream(stream):
            for _ in range(WARMUP_STEPS - 1):
                work()
            with _waiting_is_an_error():
                work()
        before.wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        collects = gc.isenabled()
        gc.disable()  # a graph that is collected now would break this one's capture
        try:
            with torch.cuda.graph(graph, stream=stream):
                work()
        except RuntimeError as error:
            torch.cuda.set_stream(before)  # which the broken context does not do
            _broken_captures.append(str(error.__context__ or error))
            raise
        finally:
            if collects:
                gc.enable()
    return graph.replay


_broken_captures: list[str] = []


@functools.cache
def _capture_stream(device: torch.device) -> torch.cuda.Stream:
    """One stream a device: each that is used keeps tens of MB of cuBLAS's workspace for ever."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


@contextmanager
def _waiting_is_an_error() -> Iterator[None]:
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(mode)


def steps_of(training: Training, first_step: int) -> Steps:
    """How steps are taken on the training's device."""
    if training.device.type != "cuda":
        return BlockingSteps(training)
    wanted = training.config.cuda_graph == "auto"
    return QueuedSteps(training, first_step, cuda_graph if wanted else None)
