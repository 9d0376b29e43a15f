"""What the decoder-only and the encoder-only model share: all but who may see whom."""

from __future__ import annotations

import math
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import ModelConfig
from model.flops import flops_per_token
from model.layers import DecoderBlock, EncoderBlock

INIT_STD = 0.02
"""Standard deviation of the initial weights (Radford et al. 2019)."""


@torch.no_grad()
def initialise(module: nn.Module, residual_additions: int) -> None:
    """Give a module GPT-2's initial weights (Radford et al. 2019, 2.3).

    Matrices are N(0, 0.02), biases zero. The last projection of each sub-layer is
    N(0, 0.02/√n), so that the residual stream does not grow with the n sub-layers that add to it.

    Args:
        module: a model or a part of one.
        residual_additions: n, sub-layers that add to the stream of which the module is part.
    """
    residual_std = INIT_STD / math.sqrt(residual_additions)
    for name, parameter in module.named_parameters():
        if parameter.ndim >= 2:
            into_residual = name.endswith((".proj.weight", ".linear_out.weight"))
            parameter.normal_(0.0, residual_std if into_residual else INIT_STD)
        elif name.endswith(".bias"):
            parameter.zero_()


def embedding_sum(
    input_ids: Tensor,
    attention_mask: Tensor | None,
    tokens: nn.Embedding,
    positions: nn.Embedding,
    limit: str = "n_positions",
) -> Tensor:
    """Token plus position embedding.

    Positions count content tokens only, so that padding shifts nothing: with the mask
    0 0 1 1 1 they are 0 0 0 1 2.

    Args:
        input_ids: (B, S) token ids.
        attention_mask: (B, S), 1 for content and 0 for padding; None: all content.
        tokens: (V, D).
        positions: (P, D).
        limit: what the model's user calls P.

    Returns:
        (B, S, D).

    Raises:
        ValueError: S is more than P, or the mask's shape is not that of the ids.
    """
    length = input_ids.shape[1]
    if length > positions.num_embeddings:
        raise ValueError(
            f"{length} tokens in a sequence, but the model has positions for "
            f"{positions.num_embeddings} ({limit}): shorten the input or train a longer model"
        )
    if attention_mask is None:
        return tokens(input_ids) + positions.weight[:length]
    require_same_shape(input_ids, attention_mask)
    counted = (attention_mask != 0).long().cumsum(dim=1)
    return tokens(input_ids) + positions((counted - 1).clamp(min=0))


def require_same_shape(input_ids: Tensor, attention_mask: Tensor) -> None:
    """Refuse a mask that is not one of these ids.

    Raises:
        ValueError: its shape is not theirs.
    """
    if attention_mask.shape != input_ids.shape:
        raise ValueError(
            f"attention_mask has shape {tuple(attention_mask.shape)}, expected that of "
            f"input_ids, {tuple(input_ids.shape)}"
        )


class StackLM(nn.Module):
    """Embeddings, one stack of pre-LN blocks, final LayerNorm, tied head."""

    block: ClassVar[type[DecoderBlock | EncoderBlock]]
    """What the stack is made of."""

    def __init__(
        self,
        n_vocab: int,
        n_embd: int,
        n_head: int,
        n_positions: int,
        n_layer: int,
        p_dropout: float = 0.1,
    ) -> None:
        """Build and initialise the model.

        Weights are N(0, 0.02), the two projections into the residual stream of each block
        N(0, 0.02/√(2·n_layer)), biases zero, LayerNorm one and zero (Radford et al. 2019, 2.3).

        Args:
            n_vocab: token ids V.
            n_embd: width D.
            n_head: heads H; must divide n_embd.
            n_positions: longest sequence P.
            n_layer: blocks L.
            p_dropout: dropout on the embedding sum, attention weights and sub-layer outputs.

        Raises:
            ValueError: n_embd is not a multiple of n_head, or a size is out of range.
        """
        super().__init__()
        self.shape = ModelConfig(
            n_vocab=n_vocab,
            n_embd=n_embd,
            n_head=n_head,
            n_positions=n_positions,
            n_layer=n_layer,
            p_dropout=p_dropout,
        )
        self.n_positions = n_positions
        self.token_embeddings = nn.Embedding(n_vocab, n_embd)
        self.position_embeddings = nn.Embedding(n_positions, n_embd)
        self.dropout = nn.Dropout(p_dropout)
        self.blocks = nn.ModuleList(self.block(n_embd, n_head, p_dropout) for _ in range(n_layer))
        self.ln = nn.LayerNorm(n_embd)
        initialise(self, residual_additions=2 * n_layer)

    @classmethod
    def from_config(cls, shape: ModelConfig) -> Self:
        """A freshly initialised model of this shape."""
        return cls(**shape.model_dump())

    @property
    def flops_per_token(self) -> int:
        """Training FLOPs a token as the course charges them (`nanogpt`), a look-up included."""
        return flops_per_token(self.shape, self.n_positions, "nanogpt")

    @property
    def head_weight(self) -> Tensor:
        """The head's matrix (V, D): the token embedding itself."""
        return self.token_embeddings.weight

    def embed(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Token plus position embedding, with dropout.

        Positions count content tokens only, so that padding shifts nothing: with the mask
        0 0 1 1 1 they are 0 0 0 1 2.

        Args:
            input_ids: (B, S) token ids.
            attention_mask: (B, S), 1 for content and 0 for padding; None: all content.

        Returns:
            (B, S, D).

        Raises:
            ValueError: S is more than n_positions, or the mask's shape is not that of the ids.
        """
        embedded = embedding_sum(
            input_ids, attention_mask, self.token_embeddings, self.position_embeddings
        )
        return self.dropout(embedded)

    def hidden(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """What the head sees: (B, S, D) after the final LayerNorm; arguments as in `embed`.

        What stands at padding is finite and means nothing.
        """
        x = self.embed(input_ids, attention_mask)
        for block in self.blocks:
            x = block(x, attention_mask)
        return self.ln(x)

    def token_logits(self, x: Tensor) -> Tensor:
        """Logits (B, S, V) of hidden states x (B, S, D): x times the token embedding."""
        return F.linear(x, self.head_weight)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Logits (B, S, V) at each position; arguments as in `embed`."""
        return self.token_logits(self.hidden(input_ids, attention_mask))
