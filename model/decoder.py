"""Decoder-only language model of GPT-2's shape with a tied head."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from model.generation.kv_cache import KeyValueCache
from model.layers import DecoderBlock
from model.transformer import StackLM


class DecoderLM(StackLM):
    """Decoder-only language model: `forward` gives the logits of each next token."""

    block = DecoderBlock

    @torch.no_grad()
    def extend(
        self, input_ids: Tensor, cache: KeyValueCache, attention_mask: Tensor | None = None
    ) -> Tensor:
        """What `hidden` gives for tokens that follow those in the cache, which then holds them too.

        For a model in evaluation mode: nothing is dropped, and no gradients flow.

        Args:
            input_ids: (B, T) token ids.
            cache: what each row has read before.
            attention_mask: (B, T), 1 for content and 0 for padding; None: all content.

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
        blocks = cast("list[DecoderBlock]", self.blocks)
        for block, past in zip(blocks, cache.layers, strict=True):
            x = block.extend(x, past, new, rotation)
        return self.ln(x)
