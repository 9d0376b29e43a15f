"""Decoder-only language model of GPT-2's shape with a tied head."""

from __future__ import annotations

from typing import Any, Self, cast

import torch
from torch import Tensor

from model.config import ModelConfig
from model.kv_cache import KeyValueCache
from model.layers import Block
from model.transformer import Transformer


class DecoderLM(Transformer):
    """Decoder-only language model: `forward` gives the logits of each next token."""

    causal = True

    def __init__(
        self,
        n_vocab: int,
        n_embd: int,
        n_head: int,
        n_positions: int,
        n_layer: int,
        p_dropout: float = 0.1,
        **options: Any,
    ) -> None:
        """Build the model from the course's arguments; options are other fields of `ModelConfig`.

        An adapter at the edge: the product calls `from_config`.

        Raises:
            ValueError: n_embd is not a multiple of n_head, or a size is out of range.
        """
        shape = ModelConfig(
            n_vocab=n_vocab, n_embd=n_embd, n_head=n_head, n_positions=n_positions, n_layer=n_layer,
            p_dropout=p_dropout, **options,
        )  # fmt: skip
        super().__init__(shape)

    @classmethod
    def from_config(cls, shape: ModelConfig) -> Self:
        """A freshly initialised model of this shape."""
        return cls(**shape.model_dump())

    @torch.no_grad()
    def extend(
        self, input_ids: Tensor, cache: KeyValueCache, attention_mask: Tensor | None = None
    ) -> Tensor:
        """What `hidden` gives for tokens (B, T) that follow those in the cache; it holds them then.

        For a model in evaluation mode, without gradients. The mask (B, T) is 1 for content and 0
        for padding; None: all content.

        Returns:
            (B, T, D); what stands at padding means nothing.
        """
        assert not self.training, "the cached path has no dropout: call eval() first"
        new = cache.advance(input_ids, attention_mask)
        positions = new.positions.clamp(min=0)
        x = self.token_embeddings(input_ids)
        if self.shape.positions == "learned":
            x = x + self.position_embeddings(positions)
        rotation = self.rotation(positions, input_ids.shape[1])
        blocks = cast("list[Block]", self.blocks)
        for block, past in zip(blocks, cache.layers, strict=True):
            x = block.extend(x, past, new, rotation)
        return self.ln(x)
