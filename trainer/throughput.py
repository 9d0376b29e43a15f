"""How fast a configuration trains here."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch

from trainer.config import RunConfig
from trainer.hardware.compilation import training_forward, wants_compile
from trainer.hardware.device import autocast_context, flushing_denormals, synchronize, torch_device
from trainer.hardware.process_memory import keep_freed_memory
from trainer.objectives import NextToken, objective_for
from trainer.optim import build_optimizer
from trainer.optimizer_steps import LOGGED_STEPS, Training, steps_of


def measure_tokens_per_second(config: RunConfig, seconds: float = 1.0) -> float:
    """Training tokens per second of a configuration here, from optimiser steps on random tokens.

    Forward, loss, backward and update are run on this device in the run's precision after a warm-up
    (about as long as `seconds` at most), without torch.compile unless it is asked for (`compile:
    on`). On CUDA whole steps are queued or captured as in a run. Elsewhere a batch too large for
    the time is measured on fewer sequences; the update is timed by itself and charged once a step.
    The caller's random state is kept.
    """
    device = torch_device(config.device)
    keep_freed_memory()
    devices = [device] if device.type == "cuda" else []
    with flushing_denormals(), torch.random.fork_rng(devices=devices):
        torch.manual_seed(config.seed)
        if device.type == "cuda" and config.architecture == "decoder":
            try:
                return StepTimer(config, device).tokens_per_second(seconds)
            finally:
                if config.compile == "on":
                    torch.compiler.reset()
        return _measure(config, device, seconds)


class StepTimer:
    """A decoder's training of random ids on a device, which moves no weight, to be timed.

    Steps are taken as in a run: queued or captured on CUDA, one by one elsewhere.
    """

    def __init__(self, config: RunConfig, device: torch.device) -> None:
        """Build model and optimiser; what has to be captured or compiled is, at the first step."""
        config = config.with_changes(
            num_training_steps=1 << 30, num_warmup_steps=0, warmup_fraction=None,
            max_lr=0.0, min_lr=None, min_lr_ratio=0.0, budget_flops=None,
        )  # fmt: skip
        objective = NextToken(config, device)
        objective.read_noise()
        model = objective.build_model()
        compiled = config.compile == "on" and wants_compile(config, device)
        self.training = Training(
            config, device, objective, model, training_forward(model, compiled),
            build_optimizer(model, config, device), autocast_context(config, device),
        )  # fmt: skip
        self._steps = steps_of(self.training, 0)
        self._taken = 0
        self.time_steps(1)

    def tokens_per_second(self, seconds: float) -> float:
        """Training tokens per second, of whole steps that take so long together or longer."""
        at_once = min(LOGGED_STEPS, max(1, int(seconds / 5 / max(self.time_steps(1), 1e-6))))
        passed, before = 0.0, self._taken
        while passed < seconds:
            passed += self.time_steps(at_once)
        return self.training.config.tokens_per_step * (self._taken - before) / passed

    def time_steps(self, count: int) -> float:
        """Seconds that so many more steps take, all of them waited for."""
        start = time.perf_counter()
        for step in range(self._taken, self._taken + count):
            self._steps.take(step)
        self._steps.collect()
        self._taken += count
        return time.perf_counter() - start


def _measure(config: RunConfig, device: torch.device, seconds: float) -> float:
    objective = objective_for(config, device)
    model = objective.build_model()
    optimizer = build_optimizer(model, config, device)
    autocast = autocast_context(config, device)
    forward = training_forward(model, compiled=False)

    def timed(work: Callable[..., object], *arguments: int) -> float:
        start = time.perf_counter()
        work(*arguments)
        synchronize(device)
        return time.perf_counter() - start

    def pass_over(n_sequences: int) -> None:
        batch = objective.random_batch(n_sequences)
        with autocast:
            loss = objective.loss(forward, model, batch)
        torch.autograd.backward(loss)

    # Warm up with growing batches, until one is the run's own or takes a fifth of the time.
    n_sequences = 1
    timed(pass_over, 1)
    timed(optimizer.step)
    while (took := timed(pass_over, n_sequences)) < seconds / 5:
        if n_sequences == config.batch_size:
            break
        growth = max(2, min(8, int(seconds / 5 / max(took, 1e-6))))
        n_sequences = min(config.batch_size, n_sequences * growth)
    passes: list[float] = []
    updates: list[float] = []
    deadline = time.perf_counter() + seconds
    while not passes or time.perf_counter() < deadline:
        passes.append(timed(pass_over, n_sequences))
        updates.append(timed(optimizer.step))
        optimizer.zero_grad(set_to_none=True)
    pass_seconds = median(passes) * config.batch_size / n_sequences
    step_seconds = config.grad_accumulation_steps * pass_seconds + median(updates)
    return config.tokens_per_step / step_seconds
