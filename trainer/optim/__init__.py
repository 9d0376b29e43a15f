"""Optimisers, a module each, and learning-rate schedules: they see parameters and step numbers.

No data and no run is known here. Importing this package loads no torch.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar, Protocol

from budgetsweep.registry import import_modules_of
from model.config import EncoderDecoderConfig, ModelConfig
from model.flops import Convention, count_params

if TYPE_CHECKING:
    import torch
    from torch import nn

    from trainer.optim.joined import AnyOptimizer

Shape = ModelConfig | EncoderDecoderConfig


class Hyperparameters(Protocol):
    """What optimisers are set to; see `trainer.config.RunConfig`."""

    optimizer: str
    max_lr: float
    weight_decay: float
    beta1: float
    beta2: float
    adam_eps: float


class OptimizerKind(ABC):
    """One optimiser: a subclass with a name, in a module of this package, is known everywhere.

    The module must not load torch when it is imported; `build` may.
    """

    name: ClassVar[str]
    """Value of the key `optimizer`."""
    decoder_only: ClassVar[bool] = False
    """Its costs are those of a decoder's shape."""

    _known: ClassVar[dict[str, OptimizerKind]] = {}

    def __init_subclass__(cls) -> None:
        OptimizerKind._known[cls.name] = cls()

    @abstractmethod
    def build(
        self,
        parameters: list[tuple[str, nn.Parameter]],
        config: Hyperparameters,
        device: torch.device,
    ) -> AnyOptimizer:
        """The optimiser of these parameters, which are given with their names.

        Its learning rate starts at max_lr; the training loop sets it at each step.
        """

    def flops_per_step(self, shape: Shape, convention: Convention) -> int:
        """FLOPs of its matrix products in a step; elementwise work is left out as in the model."""
        del shape, convention
        return 0

    def state_bytes(self, shape: Shape) -> int:
        """Bytes that it remembers from step to step; by default two float32 per parameter."""
        return 8 * count_params(shape)

    def update_bytes(self, shape: Shape) -> int:
        """Bytes that come and go while it moves the parameters."""
        del shape
        return 0


@functools.cache
def optimizer_kinds() -> dict[str, OptimizerKind]:
    """The optimisers that there are, by name."""
    import_modules_of(__name__)
    return dict(sorted(OptimizerKind._known.items()))


def build_optimizer(
    model: nn.Module, config: Hyperparameters, device: torch.device
) -> AnyOptimizer:
    """The optimiser of a run."""
    parameters = list(model.named_parameters())
    return optimizer_kinds()[config.optimizer].build(parameters, config, device)
