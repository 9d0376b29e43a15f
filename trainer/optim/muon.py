"""Muon for the matrices of the blocks, AdamW for all else (Jordan et al. 2024).

Muon's update is scaled to the size of an AdamW update, so that learning rate and decay are the same
for both (Liu et al. 2025, "Muon is scalable", eq. 4).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from model.config import ModelConfig
from model.flops import Convention
from trainer.optim import Hyperparameters, OptimizerKind, Shape
from trainer.optim.adamw import AdamW
from trainer.optim.joined import AnyOptimizer, JoinedOptimizers

if TYPE_CHECKING:
    import torch
    from torch import nn

MOMENTUM = 0.95
"""Jordan et al. 2024."""
NEWTON_SCHULZ_STEPS = 5
"""Iterations of the orthogonalisation (Jordan et al. 2024; torch's default)."""


class Muon(OptimizerKind):
    """Orthogonalised momentum."""

    name = "muon"
    decoder_only = True

    def build(
        self,
        parameters: list[tuple[str, nn.Parameter]],
        config: Hyperparameters,
        device: torch.device,
    ) -> AnyOptimizer:
        """Ours, beside an AdamW; an AdamW alone where no parameter is a matrix of a block."""
        from trainer.optim.algorithms import muon

        hidden = [p for name, p in parameters if p.ndim == 2 and "blocks." in name]
        rest = [(name, p) for name, p in parameters if not (p.ndim == 2 and "blocks." in name)]
        adamw = AdamW().build(rest, config, device)
        if not hidden:
            return adamw
        ours = muon.Muon(hidden, config.max_lr, config.weight_decay, MOMENTUM, NEWTON_SCHULZ_STEPS)
        return JoinedOptimizers((adamw, ours))

    def flops_per_step(self, shape: Shape, convention: Convention) -> int:
        """FLOPs of orthogonalising the momentum of each block's matrices, whatever the batch.

        Each of the five iterations on an a x b matrix, a the smaller side, multiplies a x b by
        b x a, a x a by a x a and a x a by a x b: 2a²b + a³ multiply-adds.
        """
        assert isinstance(shape, ModelConfig)
        d, inner = shape.n_embd, shape.n_inner
        a, b = min(d, inner), max(d, inner)
        macs = NEWTON_SCHULZ_STEPS * shape.n_layer * (4 * 3 * d**3 + 2 * (2 * a**2 * b + a**3))
        return macs if convention == "mac" else 2 * macs

    def state_bytes(self, shape: Shape) -> int:
        """One moment for each matrix of a block, two for all else."""
        assert isinstance(shape, ModelConfig)
        d = shape.n_embd
        return super().state_bytes(shape) - 4 * shape.n_layer * (4 * d + 2 * shape.n_inner) * d

    def update_bytes(self, shape: Shape) -> int:
        """The batch of the feed-forward's matrices: in float32 and twice in bf16."""
        assert isinstance(shape, ModelConfig)
        return 8 * shape.n_layer * 2 * shape.n_inner * shape.n_embd
