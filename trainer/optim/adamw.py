"""AdamW (Loshchilov & Hutter 2019)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trainer.optim import Hyperparameters, OptimizerKind

if TYPE_CHECKING:
    import torch
    from torch import nn

FUSED_DEVICES = ("cpu", "cuda", "mps")


class AdamW(OptimizerKind):
    """Decoupled decay on matrices only."""

    name = "adamw"

    def build(
        self,
        parameters: list[tuple[str, nn.Parameter]],
        config: Hyperparameters,
        device: torch.device,
    ) -> torch.optim.Optimizer:
        """PyTorch's, with its fused kernel where there is one."""
        import torch

        return torch.optim.AdamW(
            decay_groups([p for _, p in parameters], config.weight_decay),
            lr=config.max_lr,
            betas=(config.beta1, config.beta2),
            eps=config.adam_eps,
            fused=device.type in FUSED_DEVICES,
            capturable=device.type == "cuda",
        )


def decay_groups(parameters: list[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups in which matrices decay; biases and norms do not."""
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
