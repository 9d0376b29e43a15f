"""The parts of a model under the names and with the arguments of CMU 11-667, Assignment 2.

Adapters at the edge, for the course's own tests and code: the product builds `SelfAttention`, `MLP`
and `Block` from a `ModelConfig`. What that refuses is a ValueError. The course's fourth name,
`DecoderLM`, is in `model.decoder`.
"""

from __future__ import annotations

from model.attention import SelfAttention
from model.config import ModelConfig
from model.layers import MLP, Block


class MultiHeadAttention(SelfAttention):
    """Causal self-attention."""

    def __init__(self, n_embd: int, n_head: int, p_dropout: float = 0.1) -> None:
        super().__init__(_shape(n_embd, n_head, p_dropout))


class FeedForward(MLP):
    """The feed-forward network of a block."""

    def __init__(self, n_embd: int, p_dropout: float = 0.1) -> None:
        super().__init__(_shape(n_embd, 1, p_dropout))


class DecoderBlock(Block):
    """A causal block."""

    def __init__(self, n_embd: int, n_head: int, p_dropout: float = 0.1) -> None:
        super().__init__(_shape(n_embd, n_head, p_dropout))


def _shape(n_embd: int, n_head: int, p_dropout: float) -> ModelConfig:
    """A shape of which only the part's own sizes matter."""
    return ModelConfig(
        n_vocab=1, n_embd=n_embd, n_head=n_head, n_positions=1, n_layer=1, p_dropout=p_dropout
    )
