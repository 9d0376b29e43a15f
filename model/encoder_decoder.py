"""Encoder-decoder language model: a bidirectional encoder, a causal decoder that sees its output.

The decoder reads the target as it should be (teacher forcing) and predicts each next token.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from model.config import EncoderDecoderConfig
from model.kv_cache import KeyValueCache, TargetCache
from model.layers import Block, CrossDecoderBlock, build_norm
from model.transformer import TiedHead, embedding_sum, initialise


class EncoderDecoderLM(TiedHead):
    """Encoder-decoder language model: pre-norm blocks on both sides, one embedding, tied head.

    Source and target share the token embedding (one vocabulary) but not the position embeddings, as
    in BART (Lewis et al. 2020): the two sides have lengths of their own, and being fifth in a
    source says nothing about being fifth in its target.
    """

    head_bias: None = None

    def __init__(self, shape: EncoderDecoderConfig) -> None:
        """Build and initialise the model.

        Weights are N(0, 0.02), biases zero, LayerNorm one and zero. The last projection of each
        sub-layer is N(0, 0.02/√n), where n counts the additions to its own residual stream: the
        encoder's has 2·n_encoder_layer, the decoder's 3·n_decoder_layer. The memory passes a
        LayerNorm in between, so the encoder's depth does not add to the decoder's.
        """
        super().__init__()
        self.shape = shape
        encoder, decoder, width = shape.encoder, shape.decoder, shape.n_embd
        self.token_embeddings = nn.Embedding(shape.n_vocab, width)
        self.source_position_embeddings = nn.Embedding(shape.n_source_positions, width)
        self.target_position_embeddings = nn.Embedding(shape.n_target_positions, width)
        self.dropout = nn.Dropout(shape.p_dropout)
        self.encoder_blocks = nn.ModuleList(
            Block(encoder, causal=False) for _ in range(encoder.n_layer)
        )
        self.encoder_ln = build_norm(encoder)
        self.decoder_blocks = nn.ModuleList(
            CrossDecoderBlock(decoder) for _ in range(decoder.n_layer)
        )
        self.ln = build_norm(decoder)
        embeddings = [
            self.token_embeddings,
            self.source_position_embeddings,
            self.target_position_embeddings,
        ]
        initialise(nn.ModuleList(embeddings), residual_additions=1)
        initialise(self.encoder_blocks, residual_additions=2 * encoder.n_layer)
        initialise(self.decoder_blocks, residual_additions=3 * decoder.n_layer)

    def encode(self, source_ids: Tensor, source_mask: Tensor | None = None) -> Tensor:
        """What the decoder sees of a source: the memory (B, S, D), after a LayerNorm.

        What stands at padding is finite and means nothing. Arguments and errors as in `forward`.
        """
        positions = self.source_position_embeddings
        x = self._embed(source_ids, source_mask, positions, "n_source_positions")
        for block in self.encoder_blocks:
            x = block(x, source_mask)
        return self.encoder_ln(x)

    def decode(
        self,
        target_ids: Tensor,
        memory: Tensor,
        target_mask: Tensor | None = None,
        source_mask: Tensor | None = None,
    ) -> Tensor:
        """What the head sees, (B, T, D); the memory (B, S, D) is what `encode` gave of the source.

        Arguments and errors else as in `forward`.
        """
        if len(target_ids) != len(memory):
            raise ValueError(
                f"{len(target_ids)} targets for {len(memory)} sources: expected as many of both"
            )
        positions = self.target_position_embeddings
        x = self._embed(target_ids, target_mask, positions, "n_target_positions")
        for block in self.decoder_blocks:
            x = block(x, memory, target_mask, source_mask)
        return self.ln(x)

    def _embed(
        self, ids: Tensor, mask: Tensor | None, positions: nn.Embedding, limit: str
    ) -> Tensor:
        return self.dropout(embedding_sum(ids, mask, self.token_embeddings, positions, limit))

    @torch.no_grad()
    def remember(
        self, memory: Tensor, capacity: int, source_mask: Tensor | None = None
    ) -> TargetCache:
        """Empty targets of at most `capacity` tokens, and what each layer sees of their sources.

        The memory (B, S, D) is what `encode` gave; the mask (B, S) is that of the sources.
        """
        blocks = cast("list[CrossDecoderBlock]", self.decoder_blocks)
        return TargetCache(
            KeyValueCache(self.shape.decoder, len(memory), capacity, self.head_weight),
            [block.cross.remember(memory, source_mask) for block in blocks],
        )

    @torch.no_grad()
    def extend(
        self, target_ids: Tensor, cache: TargetCache, target_mask: Tensor | None = None
    ) -> Tensor:
        """What `decode` gives for tokens (B, T) that follow those in the cache; it holds them then.

        Else as `DecoderLM.extend`; the cache is what `remember` gave.
        """
        assert not self.training, "the cached path has no dropout: call eval() first"
        new = cache.past.advance(target_ids, target_mask)
        positions = self.target_position_embeddings(new.positions.clamp(min=0))
        x = self.token_embeddings(target_ids) + positions
        blocks = cast("list[CrossDecoderBlock]", self.decoder_blocks)
        for block, past, seen in zip(blocks, cache.past.layers, cache.memory, strict=True):
            x = block.extend(x, past, seen, new)
        return self.ln(x)

    def hidden(
        self,
        source_ids: Tensor,
        target_ids: Tensor,
        source_mask: Tensor | None = None,
        target_mask: Tensor | None = None,
    ) -> Tensor:
        """What the head sees of each target position, (B, T, D); arguments as in `forward`."""
        memory = self.encode(source_ids, source_mask)
        return self.decode(target_ids, memory, target_mask, source_mask)

    def forward(
        self,
        source_ids: Tensor,
        target_ids: Tensor,
        source_mask: Tensor | None = None,
        target_mask: Tensor | None = None,
    ) -> Tensor:
        """Logits (B, T, V) of each next target token, given the source and the target so far.

        A target begins with a token that is given, such as end-of-text; entry t is about token t +
        1. Ids are (B, S) and (B, T); masks likewise, 1 for content and 0 for padding, None: all
        content. Positions count content only.

        Raises:
            ValueError: a sequence is too long, there are not as many targets as sources, or a
                mask's shape is not that of its ids.
        """
        return self.token_logits(self.hidden(source_ids, target_ids, source_mask, target_mask))
