"""Rotary position embedding: queries and keys turned by angles that grow with the position.

Su et al. 2021, "RoFormer", eq. 34: the product of a turned query and a turned key depends on how
far they stand apart, not on where. The pairs are dimension i and i + HD/2, as in GPT-NeoX.
"""

from __future__ import annotations

import torch
from torch import Tensor

BASE = 10_000.0
"""Of the wavelengths, from 2π tokens to almost 2π times this."""


def rotation_table(n_positions: int, head_dim: int) -> Tensor:
    """Cosine and sine of each position's angles, float32 (2, P, HD/2); HD is even."""
    frequencies = BASE ** -(torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    angles = torch.arange(n_positions, dtype=torch.float64)[:, None] * frequencies
    return torch.stack((angles.cos(), angles.sin())).float()


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Turn x (B, H, S, HD) by `rotation`, (2, S, HD/2) or (2, B, 1, S, HD/2); in x's type."""
    cos, sin = rotation
    left, right = x.chunk(2, dim=-1)
    return torch.cat((left * cos - right * sin, right * cos + left * sin), dim=-1).to(x.dtype)
