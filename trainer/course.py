"""The training functions of CMU 11-667, Assignment 2, under their names.

Small and plain: a model, an endless iterator of batches, an optimiser. Runs that are checkpointed,
resumed and metered go through `trainer.loop`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from budgetsweep.errors import DataError, NonFiniteLoss
from model.generation.sampling import evaluating
from trainer.evaluation import perplexity

Tokens: TypeAlias = Tensor | np.ndarray | Sequence[int]
"""Token ids in one dimension; a memory-mapped array is never read as a whole."""

_NO_AUTOCAST = nullcontext()


def random_batch_sampler(
    tokens: Tokens,
    device: torch.device | str,
    batch_size: int,
    seq_len: int,
    generator: torch.Generator | None = None,
) -> Iterator[Tensor]:
    """Windows (B, S) int64 at uniformly random starts 0 … len - seq_len inclusive, for ever.

    `generator` is the source of the starts; None: torch's global one.

    Raises:
        DataError: there are fewer than seq_len tokens.
    """
    array = _token_array(tokens, batch_size, seq_len)
    if len(array) < seq_len:
        raise DataError(f"{len(array)} tokens are fewer than one window of seq_len = {seq_len}")
    offsets = torch.arange(seq_len)

    def batches() -> Iterator[Tensor]:
        while True:
            starts = torch.randint(len(array) - seq_len + 1, (batch_size, 1), generator=generator)
            yield _on_device(array, starts + offsets, device)

    return batches()


def sequential_batch_sampler(
    tokens: Tokens, device: torch.device | str, batch_size: int, seq_len: int
) -> Iterator[Tensor]:
    """The tokens once, in order, in batches (B, S); the incomplete last batch is dropped."""
    array = _token_array(tokens, batch_size, seq_len)
    window = torch.arange(batch_size * seq_len).view(batch_size, seq_len)

    def batches() -> Iterator[Tensor]:
        size = batch_size * seq_len
        for start in range(0, len(array) - size + 1, size):
            yield _on_device(array, window + start, device)

    return batches()


def _token_array(tokens: Tokens, batch_size: int, seq_len: int) -> Tensor | np.ndarray:
    if batch_size < 1 or seq_len < 1:
        raise ValueError(f"batch_size = {batch_size} and seq_len = {seq_len} must be at least 1")
    if isinstance(tokens, Tensor):
        # NumPy indexes every integer type; torch not the unsigned ones. Shares the memory.
        array = tokens.detach().numpy() if tokens.device.type == "cpu" else tokens
    else:
        array = np.asanyarray(tokens)
    if array.ndim != 1:
        raise ValueError(f"tokens have shape {tuple(array.shape)}, expected one dimension")
    return array


def _on_device(array: Tensor | np.ndarray, index: Tensor, device: torch.device | str) -> Tensor:
    if isinstance(array, Tensor):
        return array[index.to(array.device)].to(device, torch.int64)
    return torch.from_numpy(array[index.numpy()].astype(np.int64)).to(device)


def compute_language_modeling_loss(input_ids: Tensor, logits: Tensor) -> Tensor:
    """Mean next-token cross-entropy in nats, at least float32.

    The token of input_ids (B, S) at position t + 1 is the target of position t of the logits (B, S,
    V); those of the last position have no target.
    """
    wide = logits[:, :-1].to(torch.promote_types(logits.dtype, torch.float32))
    return F.cross_entropy(wide.flatten(0, 1), input_ids[:, 1:].flatten())


def train(
    model: nn.Module,
    batch_sampler: Iterator[Tensor],
    optimizer: torch.optim.Optimizer,
    lr_schedule: Callable[[int], float],
    autocast: AbstractContextManager[Any] = _NO_AUTOCAST,
    num_training_steps: int = 0,
    grad_accumulation_steps: int = 1,
) -> list[float]:
    """Train `model`, which gives logits (B, S, V) of input_ids (B, S), in place.

    The gradient of one optimiser step is the mean over its micro-batches: with micro-batches of one
    size it equals that of the batch that holds them all. The learning rate is set before each step
    t = 0, 1, …

    Returns:
        Mean training loss of each step, in nats.

    Raises:
        NonFiniteLoss: a loss is NaN or infinite; raised before that step changes any weight. Steps
            count from 1.
        DataError: the sampler ran out of batches.
    """
    model.train()
    losses: list[float] = []
    for step in range(num_training_steps):
        for group in optimizer.param_groups:
            group["lr"] = lr_schedule(step)
        optimizer.zero_grad(set_to_none=True)
        total: Tensor | float = 0.0
        for _ in range(grad_accumulation_steps):
            input_ids = next(batch_sampler, None)
            if input_ids is None:
                raise DataError(f"the batch sampler ran out of batches in step {step + 1}")
            with autocast:
                loss = compute_language_modeling_loss(input_ids, model(input_ids))
            (loss / grad_accumulation_steps).backward()  # type: ignore[no-untyped-call]
            total = total + loss.detach()
        mean = float(total) / grad_accumulation_steps
        if not math.isfinite(mean):
            raise NonFiniteLoss(step + 1, mean)
        optimizer.step()
        losses.append(mean)
    return losses


def evaluate(
    model: nn.Module,
    batch_sampler: Iterable[Tensor],
    autocast: AbstractContextManager[Any] = _NO_AUTOCAST,
) -> dict[str, float]:
    """Mean loss over the batches, each batch weighing the same, without dropout.

    Returns:
        {"val-loss": nats, "val-perplexity": exp(loss)}.

    Raises:
        DataError: no batch.
    """
    losses: list[float] = []
    with evaluating(model):
        for input_ids in batch_sampler:
            with autocast:
                loss = compute_language_modeling_loss(input_ids, model(input_ids))
            losses.append(loss.item())
    if not losses:
        raise DataError("no full batch to evaluate on: use fewer or shorter sequences a batch")
    mean = math.fsum(losses) / len(losses)
    return {"val-loss": mean, "val-perplexity": perplexity(mean)}
