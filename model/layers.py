"""Feed-forward network and pre-norm blocks, each built from the model's shape."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from model.attention import CrossAttention, SelfAttention
from model.config import ModelConfig
from model.kv_cache import LayerCache, LayerMemory, NewTokens


def build_norm(shape: ModelConfig) -> nn.Module:
    """LayerNorm, or RMSNorm without parameters (Zhang & Sennrich 2019)."""
    if shape.norm == "rms":
        return nn.RMSNorm(shape.n_embd, elementwise_affine=False)
    return nn.LayerNorm(shape.n_embd)


class MLP(nn.Module):
    """Position-wise network D -> 4D -> activation -> D, dropout on the output."""

    def __init__(self, shape: ModelConfig) -> None:
        super().__init__()
        self.activation = shape.activation
        self.linear_in = nn.Linear(shape.n_embd, shape.n_inner, bias=shape.bias)
        self.linear_out = nn.Linear(shape.n_inner, shape.n_embd, bias=shape.bias)
        self.dropout = nn.Dropout(shape.p_dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the network to x (..., D).

        GELU is the exact one (erf); relu2 is max(0, x)² (So et al. 2021, "Primer").
        """
        inner = self.linear_in(x)
        inner = F.gelu(inner) if self.activation == "gelu" else F.relu(inner).square()
        return self.dropout(self.linear_out(inner))


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed-forward(norm(x)) (pre-norm, as in GPT-2).

    An encoder's block is the same: BERT itself normalises after each addition, but pre-norm trains
    without warm-up at these sizes (Xiong et al. 2020).
    """

    def __init__(self, shape: ModelConfig, *, causal: bool = True) -> None:
        """Build the block; arguments as in `SelfAttention`."""
        super().__init__()
        self.ln_1 = build_norm(shape)
        self.mha = SelfAttention(shape, causal=causal)
        self.ln_2 = build_norm(shape)
        self.ff = MLP(shape)

    def forward(
        self, x: Tensor, attention_mask: Tensor | None = None, rotation: Tensor | None = None
    ) -> Tensor:
        """Transform x (B, S, D); arguments as in `SelfAttention.forward`."""
        x = x + self.mha(self.ln_1(x), attention_mask, rotation)
        return x + self.ff(self.ln_2(x))

    def extend(
        self, x: Tensor, past: LayerCache, new: NewTokens, rotation: Tensor | None = None
    ) -> Tensor:
        """Transform new tokens x (B, T, D), which also see what `past` holds; causal only."""
        x = x + self.mha.extend(self.ln_1(x), past, new, rotation)
        return x + self.ff(self.ln_2(x))


class CrossDecoderBlock(nn.Module):
    """Causal self-attention, cross-attention, feed-forward; each is x + f(norm(x)) (pre-norm).

    The memory comes normalised from the encoder, so cross-attention normalises its queries only.
    """

    def __init__(self, shape: ModelConfig) -> None:
        super().__init__()
        self.ln_1 = build_norm(shape)
        self.mha = SelfAttention(shape)
        self.ln_cross = build_norm(shape)
        self.cross = CrossAttention(shape)
        self.ln_2 = build_norm(shape)
        self.ff = MLP(shape)

    def forward(
        self,
        x: Tensor,
        memory: Tensor,
        target_mask: Tensor | None = None,
        source_mask: Tensor | None = None,
    ) -> Tensor:
        """Transform x (B, T, D), which sees memory (B, S, D).

        The masks, (B, T) and (B, S), are 1 for content and 0 for padding; None: all content.
        """
        x = x + self.mha(self.ln_1(x), target_mask)
        x = x + self.cross(self.ln_cross(x), memory, source_mask)
        return x + self.ff(self.ln_2(x))

    def extend(self, x: Tensor, past: LayerCache, seen: LayerMemory, new: NewTokens) -> Tensor:
        """Transform new tokens x (B, T, D), which also see what `past` and the memory hold."""
        x = x + self.mha.extend(self.ln_1(x), past, new)
        x = x + self.cross.look(self.ln_cross(x), seen)
        return x + self.ff(self.ln_2(x))
