"""What a training run tells its caller, and what the caller may answer. No torch.

`trainer.loop.train_run` is a generator of `Progress`, `Point` and `Checkpointed`; the caller may
`send` a `Command` in reply to any of them. It returns a `RunResult`. All are plain, picklable data.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

Command = Literal["prune", "interrupt"]


class RunStatus(StrEnum):
    """Where a run is in its life; a training run itself ends in one of the last four."""

    QUEUED = "queued"
    RUNNING = "running"
    INTERRUPTED = "interrupted"
    COMPLETE = "complete"
    PRUNED = "pruned"
    FAILED = "failed"

    @property
    def is_finished(self) -> bool:
        """Whether the run has ended for good."""
        return self in (RunStatus.COMPLETE, RunStatus.PRUNED, RunStatus.FAILED)


DeviceKind = Literal["cpu", "cuda", "mps"]


@dataclass(frozen=True)
class Progress:
    """Where the run is; at least once a second, not worth storing."""

    step: int
    num_steps: int
    tokens: int
    tokens_per_second: float


@dataclass(frozen=True)
class Point:
    """One point of the learning curves. Counts are those of the optimiser steps done so far."""

    step: int
    tokens: int
    flops: int
    """Training FLOPs in the run's convention."""
    seconds: float
    """Training time so far, earlier attempts included, evaluation and checkpoints not."""
    train_loss_nats: float | None = None
    """Mean training loss since the last point."""
    val_loss_nats: float | None = None
    lr: float | None = None
    grad_norm: float | None = None


@dataclass(frozen=True)
class Checkpointed:
    """A checkpoint of `step` is safely on disk."""

    step: int
    steps_executed: int
    """Optimiser steps computed in all attempts, as the run's meter counts them."""


@dataclass(frozen=True)
class RunResult:
    """How a run ended, or stopped for now."""

    status: RunStatus
    step: int
    """Optimiser steps in the model's history."""
    steps_executed: int
    """Optimiser steps computed in all attempts, those lost to a kill included."""
    tokens: int
    reason: str | None = None
    """Why it failed, in one line; of a replayed run, which one it stands for."""
    val_loss_nats: float | None = None
    val_ppl: float | None = None
    val_bits_per_byte: float | None = None
    val_loss_stderr_nats: float | None = None
    """Standard error of the validation loss from the spread between windows."""
    val_tokens: int | None = None
    train_loss_nats: float | None = None
    train_seconds: float = 0.0
    eval_seconds: float = 0.0
    peak_memory_bytes: int | None = None
    device_name: str | None = None
    precision: str | None = None
    compiled: bool | None = None
    artefacts: dict[str, str] = field(default_factory=dict)
    """Files written, by kind (`model`, `config`, `eval`)."""


@dataclass(frozen=True)
class DeviceInfo:
    """The device that a run would use."""

    kind: DeviceKind
    name: str
    memory_bytes: int
    """Memory that a run may use (free memory of the GPU, available memory of the machine)."""
    bf16: bool
    n_threads: int
    count: int = 1
    """Devices of this kind."""
