"""The optimiser of a training run."""

from __future__ import annotations

import torch
from torch import nn

from trainer.config import RunConfig

FUSED_DEVICES = ("cpu", "cuda", "mps")


def build_optimizer(
    model: nn.Module, config: RunConfig, device: torch.device | str
) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019) with decoupled decay on matrices only.

    Biases and LayerNorm parameters are not decayed. The learning rate starts at config.max_lr;
    the training loop sets it at each step.

    Args:
        model: its parameters that need gradients are optimised.
        config: weight_decay, beta1, beta2, adam_eps, max_lr.
        device: decides whether the fused kernel is used.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=config.max_lr,
        betas=(config.beta1, config.beta2),
        eps=config.adam_eps,
        fused=torch.device(device).type in FUSED_DEVICES,
    )
