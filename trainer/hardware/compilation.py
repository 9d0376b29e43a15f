"""When torch.compile pays, and how a run uses it without leaving anything behind.

Measured on 2 vCPU with AMX, torch 2.13, one thread, seven steps each way in turn, eager / compiled:

| shape | first step | ratio |
|---|---|---|
| D64 L2, B32 S64, V257, bf16, dropout 0.1 | 86 s (5 s from the disk cache) | 0.72, 0.79 |
| D128 L4, B8 S256, V257, fp32 | 36 s | 0.88 |
| D128 L4, B8 S256, V50257, bf16 | 65 s | 0.98 |
| D256 L4, B8 S256, V257, bf16 | 46 s | 1.00 |

So `auto` never compiles on a CPU: attention is one fused kernel and the loss is outside. On CUDA it
compiles from 3e16 training FLOPs on: *assumption*, minutes of training against about one minute of
compiling; a trial of 1e15 takes seconds there.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable

import torch
from torch import Tensor, nn

from budgetsweep.errors import ConfigError
from model.flops import Convention
from model.transformer import Transformer
from trainer.config import RunConfig
from trainer.hardware.sequence_threads import hidden_by_rows

AUTO_FROM_FLOPS = 3 * 10**16
BACKEND = "inductor"


def wants_compile(config: RunConfig, device: torch.device) -> bool:
    """Whether this run is compiled; a function of configuration and device alone.

    It must not depend on the time left: a resumed run has to compute what the whole one computes.

    Raises:
        ConfigError: it is asked for, and there is no C++ compiler, which torch.compile needs.
    """
    if config.compile == "on" and not _has_compiler():
        raise ConfigError(
            "compile: on needs a C++ compiler (c++, g++, clang++ or $CXX): set it off"
        )
    if config.compile != "auto":
        return config.compile == "on"
    flops = config.flops_per_step(Convention.MATMUL) * config.steps
    return device.type == "cuda" and flops >= AUTO_FROM_FLOPS and _has_compiler()


def training_forward(model: nn.Module, compiled: bool) -> Callable[..., Tensor]:
    """`model.hidden`, compiled for the run's one shape or as it is, on threads where that helps."""
    hidden: Callable[..., Tensor] = model.hidden  # type: ignore[assignment]
    if not compiled:
        return hidden_by_rows(model) if isinstance(model, Transformer) else hidden
    forward: Callable[..., Tensor] = torch.compile(hidden, dynamic=False, backend=BACKEND)
    return forward


def forget_compiled() -> None:
    """Drop compiled code of this process: in a worker that runs many shapes it would add up."""
    torch.compiler.reset()


def _has_compiler() -> bool:
    names = (os.environ.get("CXX"), "c++", "g++", "clang++")
    return any(name and shutil.which(name) for name in names)
