"""The transformer of the decoder-only and the encoder-only model, which differ in who sees whom."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import ModelConfig
from model.flops import Convention, flops_per_token
from model.layers import Block, build_norm
from model.rotary import rotation_table

INIT_STD = 0.02
"""Standard deviation of the initial weights (Radford et al. 2019)."""


@torch.no_grad()
def initialise(module: nn.Module, residual_additions: int, zero_residual: bool = False) -> None:
    """Give a module GPT-2's initial weights (Radford et al. 2019, 2.3).

    Matrices are N(0, 0.02), biases zero. The last projection of each sub-layer is
    N(0, 0.02/√n), so that the residual stream does not grow with the n sub-layers that add to it
    (`residual_additions`), or zero, so that each block begins as the identity (Zhang et al. 2019,
    "Fixup").
    """
    residual_std = 0.0 if zero_residual else INIT_STD / math.sqrt(residual_additions)
    for name, parameter in module.named_parameters():
        if parameter.ndim >= 2:
            into_residual = name.endswith((".proj.weight", ".linear_out.weight"))
            parameter.normal_(0.0, residual_std if into_residual else INIT_STD)
        elif name.endswith(".bias"):
            parameter.zero_()


def content_positions(
    input_ids: Tensor, attention_mask: Tensor | None, n_positions: int, limit: str = "n_positions"
) -> Tensor | None:
    """The position of each token, (B, S); None where they are 0 … S-1 in every row.

    Positions count content tokens only, so that padding shifts nothing: with the mask
    0 0 1 1 1 they are 0 0 0 1 2. `limit` is what the model's user calls n_positions.

    Raises:
        ValueError: S is more than n_positions, or the mask's shape is not that of the ids.
    """
    length = input_ids.shape[1]
    if length > n_positions:
        raise ValueError(
            f"{length} tokens in a sequence, but the model has positions for "
            f"{n_positions} ({limit}): shorten the input or train a longer model"
        )
    if attention_mask is None:
        return None
    if attention_mask.shape != input_ids.shape:
        raise ValueError(
            f"attention_mask has shape {tuple(attention_mask.shape)}, expected that of "
            f"input_ids, {tuple(input_ids.shape)}"
        )
    counted = (attention_mask != 0).long().cumsum(dim=1)
    return (counted - 1).clamp(min=0)


def embedding_sum(
    input_ids: Tensor,
    attention_mask: Tensor | None,
    tokens: nn.Embedding,
    positions: nn.Embedding,
    limit: str = "n_positions",
) -> Tensor:
    """Token plus position embedding, (B, S, D); arguments and errors as in `content_positions`."""
    where = content_positions(input_ids, attention_mask, positions.num_embeddings, limit)
    if where is None:
        return tokens(input_ids) + positions.weight[: input_ids.shape[1]]
    return tokens(input_ids) + positions(where)


class TiedHead(nn.Module):
    """A model whose head is its token embedding."""

    token_embeddings: nn.Embedding
    head_bias: Tensor | None
    """(V,) added to the logits; None: nothing."""

    @classmethod
    def from_config(cls, shape: Any) -> Self:
        """A freshly initialised model of this shape."""
        return cls(shape)

    @property
    def head_weight(self) -> Tensor:
        """The head's matrix (V, D): the token embedding itself."""
        return self.token_embeddings.weight

    def token_logits(self, x: Tensor) -> Tensor:
        """Logits (B, S, V) of hidden states x (B, S, D): x times the token embedding, + bias."""
        return F.linear(x, self.head_weight, self.head_bias)


class Transformer(TiedHead):
    """Embeddings, pre-norm blocks, final norm, tied head."""

    causal: ClassVar[bool]
    """Whether a position sees nothing after it."""

    def __init__(self, shape: ModelConfig) -> None:
        """Build and initialise the model; without options it is GPT-2's.

        A head bias is zero until `count_unigrams` is called or weights are loaded.
        """
        super().__init__()
        self.shape = shape
        self.n_positions = shape.n_positions
        self.token_embeddings = nn.Embedding(shape.n_vocab, shape.n_embd)
        if shape.positions == "learned":
            self.position_embeddings = nn.Embedding(shape.n_positions, shape.n_embd)
        else:  # follows from the shape: no checkpoint needs it
            table = rotation_table(shape.n_positions, shape.head_dim)
            self.rotation_table: Tensor
            self.register_buffer("rotation_table", table, persistent=False)
        self.dropout = nn.Dropout(shape.p_dropout)
        self.blocks = nn.ModuleList(Block(shape, causal=self.causal) for _ in range(shape.n_layer))
        self.ln = build_norm(shape)
        zeros = None if shape.head_bias == "none" else torch.zeros(shape.n_vocab)
        self.register_buffer("head_bias", zeros)
        initialise(self, residual_additions=2 * shape.n_layer, zero_residual=shape.zero_init)

    @property
    def flops_per_token(self) -> int:
        """Training FLOPs per token as the course charges them (`nanogpt`), look-ups included."""
        return flops_per_token(self.shape, self.n_positions, Convention.NANOGPT)

    @torch.no_grad()
    def count_unigrams(self, counts: Tensor) -> None:
        """Set the head's bias to log frequencies, shifted so that the data's mean is 0.

        `counts` (V,) says how often each id occurs in the training data. Each counts half a time
        more (Krichevsky & Trofimov 1981), so that none is impossible. The softmax does not see the
        shift; bf16 keeps more digits near 0.

        Raises:
            ValueError: the model has no such bias.
        """
        if self.head_bias is None:
            raise ValueError("this model has no head bias (head_bias: unigram)")
        frequencies = counts.double() + 0.5
        frequencies /= frequencies.sum()
        logs = frequencies.log()
        self.head_bias.copy_((logs - (frequencies * logs).sum()).float())

    def embed(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Token plus position embedding, (B, S, D), with dropout; of tokens alone with rope.

        The mask (B, S) is 1 for content and 0 for padding; None: all content. Errors as in
        `content_positions`.
        """
        if self.shape.positions == "rope":
            content_positions(input_ids, attention_mask, self.n_positions)
            return self.dropout(self.token_embeddings(input_ids))
        embedded = embedding_sum(
            input_ids, attention_mask, self.token_embeddings, self.position_embeddings
        )
        return self.dropout(embedded)

    def rotation(self, positions: Tensor | None, length: int) -> Tensor | None:
        """What `model.rotary.rotate` turns `length` tokens by; None: positions do not rotate.

        `positions` (B, S) says where each token stands; None: 0 … S-1.
        """
        if self.shape.positions != "rope":
            return None
        if positions is None:
            return self.rotation_table[:, :length]
        return self.rotation_table[:, positions].unsqueeze(2)

    def hidden(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """What the head sees: (B, S, D) after the final norm; arguments as in `embed`.

        What stands at padding is finite and means nothing.
        """
        x = self.embed(input_ids, attention_mask)
        where = None
        if self.shape.positions == "rope":
            where = content_positions(input_ids, attention_mask, self.n_positions)
        return self.transform(x, attention_mask, where)

    def transform(
        self, x: Tensor, attention_mask: Tensor | None = None, positions: Tensor | None = None
    ) -> Tensor:
        """What the head sees of embedded tokens x (B, S, D): all blocks and the final norm.

        `positions` are those of `rotation`.
        """
        rotation = self.rotation(positions, x.shape[1])
        for block in self.blocks:
            x = block(x, attention_mask, rotation)
        return self.ln(x)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Logits (B, S, V) at each position; arguments as in `embed`."""
        return self.token_logits(self.hidden(input_ids, attention_mask))
