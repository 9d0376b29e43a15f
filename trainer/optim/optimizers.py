"""The optimiser of a training run."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from model.flops import NEWTON_SCHULZ_STEPS
from trainer.config import RunConfig
from trainer.optim.muon import Muon

FUSED_DEVICES = ("cpu", "cuda", "mps")
MUON_MOMENTUM = 0.95
"""Jordan et al. 2024."""


def state_tensors(optimizer: AnyOptimizer) -> list[Tensor]:
    """All tensors that the optimiser remembers from step to step."""
    members = optimizer.members if isinstance(optimizer, Optimizers) else (optimizer,)
    states = (state for member in members for state in member.state.values())
    return [value for state in states for value in state.values() if isinstance(value, Tensor)]


class Optimizers:
    """Optimisers that share a model's parameters, used as one."""

    def __init__(self, members: Iterable[torch.optim.Optimizer]) -> None:
        self.members = tuple(members)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Groups of all members; the training loop sets their learning rates."""
        return [group for member in self.members for group in member.param_groups]

    def step(self) -> None:
        """Update all parameters."""
        for member in self.members:
            member.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients."""
        for member in self.members:
            member.zero_grad(set_to_none=set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """State of each member, by its class."""
        return {type(member).__name__: member.state_dict() for member in self.members}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` gave."""
        for member in self.members:
            member.load_state_dict(state[type(member).__name__])


AnyOptimizer: TypeAlias = torch.optim.Optimizer | Optimizers


def build_optimizer(
    model: nn.Module, config: RunConfig, device: torch.device | str
) -> AnyOptimizer:
    """The optimiser of a run.

    `adamw`: AdamW (Loshchilov & Hutter 2019) with decoupled decay on matrices only; biases and
    norms are not decayed. `muon`: the matrices of the blocks are moved by their orthogonalised
    momentum instead (Jordan et al. 2024), scaled to the size of an AdamW update, so that learning
    rate and decay are the same for both (Liu et al. 2025, "Muon is scalable", eq. 4).

    The learning rate starts at config.max_lr; the training loop sets it at each step.

    Args:
        model: its parameters that need gradients are optimised.
        config: optimizer, weight_decay, beta1, beta2, adam_eps, max_lr.
        device: decides whether AdamW's fused kernel is used.
    """
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    hidden = [
        p for name, p in trained if config.optimizer == "muon" and p.ndim == 2 and "blocks." in name
    ]
    rest = [p for _, p in trained if not any(p is each for each in hidden)]
    groups = [
        {"params": [p for p in rest if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=config.max_lr,
        betas=(config.beta1, config.beta2),
        eps=config.adam_eps,
        fused=torch.device(device).type in FUSED_DEVICES,
        capturable=torch.device(device).type == "cuda",
    )
    if not hidden:
        return adamw
    muon = Muon(hidden, config.max_lr, config.weight_decay, MUON_MOMENTUM, NEWTON_SCHULZ_STEPS)
    return Optimizers((adamw, muon))
