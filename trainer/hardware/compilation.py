"""When torch.compile pays, and how a run uses it without leaving anything behind.

It never pays on a CPU (docs/experiments.md). On CUDA `auto` compiles from 3e16 training FLOPs on:
*assumption*, minutes of training against about one minute of compiling.
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

    A resumed run has to compute what the whole one computes, whatever time is left.

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


def _has_compiler() -> bool:
    names = (os.environ.get("CXX"), "c++", "g++", "clang++")
    return any(name and shutil.which(name) for name in names)
