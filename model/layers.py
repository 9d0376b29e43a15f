"""Feed-forward network and pre-norm blocks."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from model.attention import CrossAttention, MultiHeadAttention
from model.generation.kv_cache import LayerCache, LayerMemory, NewTokens

Norm = Literal["layer", "rms"]
Activation = Literal["gelu", "relu2"]


def build_norm(n_embd: int, norm: Norm) -> nn.Module:
    """LayerNorm, or RMSNorm without parameters (Zhang & Sennrich 2019)."""
    if norm == "rms":
        return nn.RMSNorm(n_embd, elementwise_affine=False)
    return nn.LayerNorm(n_embd)


class FeedForward(nn.Module):
    """Position-wise network D -> 4D -> activation -> D, dropout on the output."""

    def __init__(
        self,
        n_embd: int,
        p_dropout: float = 0.1,
        *,
        activation: Activation = "gelu",
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.activation = activation
        self.linear_in = nn.Linear(n_embd, 4 * n_embd, bias=bias)
        self.linear_out = nn.Linear(4 * n_embd, n_embd, bias=bias)
        self.dropout = nn.Dropout(p_dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the network to x (..., D).

        GELU is the exact one (erf); relu2 is max(0, x)² (So et al. 2021, "Primer").
        """
        inner = self.linear_in(x)
        inner = F.gelu(inner) if self.activation == "gelu" else F.relu(inner).square()
        return self.dropout(self.linear_out(inner))


class _Block(nn.Module):
    """x + attention(norm(x)), then x + feed-forward(norm(x)) (pre-norm, as in GPT-2)."""

    causal: ClassVar[bool]

    def __init__(
        self,
        n_embd: int,
        n_head: int,
        p_dropout: float = 0.1,
        *,
        norm: Norm = "layer",
        qk_norm: bool = False,
        activation: Activation = "gelu",
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.ln_1 = build_norm(n_embd, norm)
        self.mha = MultiHeadAttention(
            n_embd, n_head, p_dropout, causal=self.causal, qk_norm=qk_norm, bias=bias
        )
        self.ln_2 = build_norm(n_embd, norm)
        self.ff = FeedForward(n_embd, p_dropout, activation=activation, bias=bias)

    def forward(
        self, x: Tensor, attention_mask: Tensor | None = None, rotation: Tensor | None = None
    ) -> Tensor:
        """Transform x (B, S, D).

        Args:
            x: (B, S, D).
            attention_mask: (B, S), 1 for content and 0 for padding; None: all content.
            rotation: of each position, as `model.rotary.rotate` takes it; None: none.
        """
        x = x + self.mha(self.ln_1(x), attention_mask, rotation)
        return x + self.ff(self.ln_2(x))


class DecoderBlock(_Block):
    """Pre-LN block in which no position sees the future."""

    causal = True

    def extend(
        self, x: Tensor, past: LayerCache, new: NewTokens, rotation: Tensor | None = None
    ) -> Tensor:
        """Transform new tokens x (B, T, D), which also see what `past` holds."""
        x = x + self.mha.extend(self.ln_1(x), past, new, rotation)
        return x + self.ff(self.ln_2(x))


class EncoderBlock(_Block):
    """Pre-LN block in which every position sees all content.

    BERT itself normalises after each addition; pre-LN trains without warm-up at these sizes and is
    what the decoder has (Xiong et al. 2020).
    """

    causal = False


class CrossDecoderBlock(nn.Module):
    """Causal self-attention, cross-attention, feed-forward; each is x + f(LN(x)) (pre-LN).

    The memory comes normalised from the encoder, so cross-attention normalises its queries only.
    """

    def __init__(self, n_embd: int, n_head: int, p_dropout: float = 0.1) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(n_embd)
        self.mha = MultiHeadAttention(n_embd, n_head, p_dropout)
        self.ln_cross = nn.LayerNorm(n_embd)
        self.cross = CrossAttention(n_embd, n_head, p_dropout)
        self.ln_2 = nn.LayerNorm(n_embd)
        self.ff = FeedForward(n_embd, p_dropout)

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
