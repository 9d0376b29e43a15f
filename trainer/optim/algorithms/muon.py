"""Muon for many matrices at once: those of one shape are orthogonalised in one batch of products.

The algorithm is that of Jordan et al. 2024 as `torch.optim.Muon` has it (whose state this one can
load), with the scale of Liu et al. 2025. torch's multiplies matrix after matrix, two to three times
slower at these widths (docs/experiments.md). The learning rate may be a tensor, so that a captured
step can be replayed with another one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic iteration; chosen for a large slope at 0 (Jordan et al. 2024)."""
NEWTON_SCHULZ_EPS = 1e-7
"""Least norm to divide by."""
RMS_OF_ADAMW = 0.2
"""Root mean square of a typical AdamW update, which Muon's is scaled to (Liu et al. 2025, 2.2)."""


def orthogonalised(matrices: Tensor, steps: int) -> Tensor:
    """Matrices near U Vᵀ of each given one's singular value decomposition U S Vᵀ, in bf16.

    Newton-Schulz iteration in bf16; singular values end between 0.5 and 1.5, no closer. All are (n,
    A, B), A at most B: the products are then those of the smaller side.
    """
    a, b, c = COEFFICIENTS
    x = matrices.bfloat16()
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp_(min=NEWTON_SCHULZ_EPS)
    for _ in range(steps):
        gram = torch.bmm(x, x.mT)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised, scaled by 0.2 √max(A, B); decoupled decay."""

    def __init__(
        self,
        matrices: Iterable[Tensor],
        lr: float | Tensor,
        weight_decay: float,
        momentum: float,
        ns_steps: int,
    ) -> None:
        """Take parameters with two dimensions each; a learning rate in a tensor lies where they do.

        Raises:
            ValueError: a parameter has not two dimensions.
        """
        defaults = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum,
                    "ns_steps": ns_steps}  # fmt: skip
        super().__init__(matrices, defaults)
        for group in self.param_groups:
            for each in group["params"]:
                if each.ndim != 2:
                    raise ValueError(f"Muon moves matrices, not a tensor {tuple(each.shape)}")

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """Update all matrices that have a gradient."""
        for group in self.param_groups:
            batches: dict[tuple[int, ...], list[Tensor]] = {}
            for each in group["params"]:
                if each.grad is not None:
                    batches.setdefault(tuple(sorted(each.shape)), []).append(each)
            for batch in batches.values():
                self._update(batch, group)

    def _update(self, matrices: list[Tensor], group: dict[str, Any]) -> None:
        """Update matrices of one shape, some of them turned."""
        momenta, gradients = [], []
        for each in matrices:
            state = self.state[each]
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(each)
            momenta.append(state["momentum_buffer"])
            assert each.grad is not None
            gradients.append(each.grad)
        torch._foreach_lerp_(momenta, gradients, 1.0 - group["momentum"])
        ahead = torch._foreach_lerp(gradients, momenta, group["momentum"])
        wide = torch.stack([_turned(each).bfloat16() for each in ahead])
        del ahead
        lr = group["lr"]
        scale = RMS_OF_ADAMW * math.sqrt(max(matrices[0].shape))
        moves = orthogonalised(wide, group["ns_steps"]).to(matrices[0].dtype).mul_(lr * scale)
        torch._foreach_mul_(matrices, 1.0 - lr * group["weight_decay"])
        for each, move in zip(matrices, moves, strict=True):
            each.sub_(move.mT if each.shape[0] > each.shape[1] else move)


def _turned(matrix: Tensor) -> Tensor:
    """The matrix (A, B), or its transpose where A is larger."""
    return matrix.mT if matrix.shape[0] > matrix.shape[1] else matrix
