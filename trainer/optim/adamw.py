"""AdamW (Loshchilov & Hutter 2019)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trainer.optim import Hyperparameters, OptimizerKind

if TYPE_CHECKING:
    import torch
    from torch import nn

FUSED_DEVICES = ("cpu", "cuda", "mps")


class AdamW(OptimizerKind):
    """Decoupled decay on matrices; biases and norms do not decay."""

    name = "adamw"

    def build(
        self,
        parameters: list[tuple[str, nn.Parameter]],
        config: Hyperparameters,
        device: torch.device,
    ) -> torch.optim.Optimizer:
        """PyTorch's, with its fused kernel where there is one."""
        import torch

        decaying = [p for _, p in parameters if p.ndim >= 2]
        others = [p for _, p in parameters if p.ndim < 2]
        groups: list[dict[str, Any]] = [
            {"params": decaying, "weight_decay": config.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(
            [group for group in groups if group["params"]],
            lr=config.max_lr,
            betas=(config.beta1, config.beta2),
            eps=config.adam_eps,
            fused=device.type in FUSED_DEVICES,
            capturable=device.type == "cuda",
        )
