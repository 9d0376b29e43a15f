"""Rotary position embedding: queries and keys turned by angles that grow with the position.

Su et al. 2021, "RoFormer", eq. 34: the product of a turned query and a turned key depends on how
far they stand apart, not on where. The pairs are dimension i and i + HD/2, as in GPT-NeoX.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

BASE = 10_000.0
"""Of the wavelengths, from 2π tokens to almost 2π times this."""


def rotation_table(n_positions: int, head_dim: int) -> Tensor:
    """Cosine and sine of each position's angles, float32 (2, P, HD/2); HD is even."""
    frequencies = BASE ** -(torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    angles = torch.arange(n_positions, dtype=torch.float64)[:, None] * frequencies
    return torch.stack((angles.cos(), angles.sin())).float()


def rotate(x: Tensor, rotation: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Turn each half-pair of x (B, H, S, HD) by the angles of its position, in float32 or wider.

    The rotation is (2, S, HD/2) or (2, B, 1, S, HD/2), as `rotation_table` has it; the result has
    the given type, or x's. Differentiable once, in x; fastest where x is a view of (B, S, H, HD).
    """
    turned: Tensor = _Rotate.apply(x.transpose(1, 2), rotation, dtype or x.dtype)  # type: ignore[no-untyped-call]
    return turned.transpose(1, 2)


class _Rotate(torch.autograd.Function):
    """Of x (B, S, H, HD): long contiguous passes, where autograd's own would be by head."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rotation: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(rotation)
        ctx.dtype = x.dtype
        cos, sin = rotation
        return _turned(x, cos, sin, dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors[0]
        return _turned(grad, cos, -sin, ctx.dtype), None, None


def _turned(x: Tensor, cos: Tensor, sin: Tensor, dtype: torch.dtype) -> Tensor:
    """X (B, S, H, HD) turned by angles whose cosines and sines are (S, HD/2) or (B, 1, S, HD/2)."""
    B, S, H, HD = x.shape
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    exchanged = x.roll(HD // 2, dims=-1).reshape(B, S, H * HD)
    # A table as wide as all heads makes each pass one long loop instead of one for each head.
    wide = _for_all_heads(torch.cat((cos, cos), dim=-1).to(x.dtype), H)
    across = _for_all_heads(torch.cat((-sin, sin), dim=-1).to(x.dtype), H)
    turned = (x.reshape(B, S, H * HD) * wide).addcmul_(exchanged, across)
    return turned.view(B, S, H, HD).to(dtype)


def _for_all_heads(table: Tensor, heads: int) -> Tensor:
    """(S, HD) or (B, 1, S, HD) to (S, H · HD) or (B, S, H · HD)."""
    if table.ndim == 4:
        table = table.squeeze(1)
    return table.repeat(*(1,) * (table.ndim - 1), heads)
