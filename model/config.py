"""The shape of a model and how tokens are drawn from it: plain settings, no torch.

A hyperparameter is a field here with a default: run configurations, search spaces, files and
reports take it from the field. Beside this file it touches the layer that reads it, and
`model.flops` if it changes the number of parameters or the products.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from budgetsweep.config import StrictModel, shape_error

Size = Annotated[int, Field(ge=1, le=1 << 24, strict=True)]
AT_START = "at start"
"""Marks a field that decides what a model begins as and not what its weights compute."""


class _Width(StrictModel):
    """What every shape has: vocabulary, width and heads."""

    n_vocab: Size
    """Number of token ids (V); of both sides, where there are two."""
    n_embd: Size
    """Width of the residual stream (D)."""
    n_head: Size
    """Attention heads (H); must divide n_embd."""

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Self:
        if self.n_embd % self.n_head:
            raise shape_error(
                f"n_embd = {self.n_embd} is not a multiple of n_head = {self.n_head}: "
                "every head must have the same width"
            )
        return self

    @property
    def head_dim(self) -> int:
        """Width of one head (D / H)."""
        return self.n_embd // self.n_head

    @property
    def n_inner(self) -> int:
        """Width inside the feed-forward network."""
        return 4 * self.n_embd


class ModelConfig(_Width):
    """Shape of the decoder-only transformer (GPT-2 shape, tied head), and of the encoder-only."""

    n_positions: Size
    """Longest sequence that has position embeddings (P)."""
    n_layer: Size
    """Number of blocks (L)."""
    p_dropout: float = Field(default=0.1, ge=0.0, lt=1.0)
    """Dropout on attention weights, sub-layer outputs and the embedding sum."""
    positions: Literal["learned", "rope"] = "learned"
    """Where tokens stand: an embedding of each position, or rotation of queries and keys."""
    norm: Literal["layer", "rms"] = "layer"
    """LayerNorm, or division by the root mean square without any parameter."""
    qk_norm: bool = False
    """Whether queries and keys are divided by their root mean square, head by head."""
    activation: Literal["gelu", "relu2"] = "gelu"
    """Of the feed-forward network; relu2: max(0, x)²."""
    bias: bool = True
    """Whether linear layers have biases."""
    zero_init: Annotated[bool, AT_START] = False
    """Whether each sub-layer begins as adding nothing: its last projection is zero."""
    head_bias: Literal["none", "unigram"] = "none"
    """What is added to the logits: nothing, or the log frequency of each token in the training
    data, which is counted and not trained."""

    @model_validator(mode="after")
    def _heads_can_be_rotated(self) -> Self:
        if self.positions == "rope" and self.head_dim % 2:
            raise shape_error(
                f"n_embd / n_head = {self.head_dim} is odd: positions: rope rotates pairs"
            )
        return self

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return self.n_layer

    def sizes(self) -> dict[str, int | float]:
        """What GPT-2's shape has too, by name."""
        return {name: getattr(self, name) for name in sorted(_SIZES)}

    def options(self, *, at_start: bool = True) -> dict[str, Any]:
        """What GPT-2's shape lacks, by name; without `at_start`, not how training only began."""
        return {
            name: getattr(self, name)
            for name, field in sorted(type(self).model_fields.items())
            if name not in _SIZES
            and getattr(self, name) != field.default
            and (at_start or AT_START not in field.metadata)
        }


_SIZES = frozenset(
    {name for name, field in ModelConfig.model_fields.items() if field.is_required()}
    | {"p_dropout"}
)


class EncoderDecoderConfig(_Width):
    """Shape of the encoder-decoder transformer (one token embedding, tied head)."""

    n_source_positions: Size
    """Longest source that has position embeddings."""
    n_target_positions: Size
    """Longest target that has position embeddings."""
    n_encoder_layer: Size
    """Number of blocks that read the source."""
    n_decoder_layer: Size
    """Number of blocks that write the target."""
    p_dropout: float = Field(default=0.1, ge=0.0, lt=1.0)
    """Dropout on attention weights, sub-layer outputs and the embedding sums."""

    @property
    def depth(self) -> int:
        """Number of blocks on both sides."""
        return self.n_encoder_layer + self.n_decoder_layer

    @property
    def encoder(self) -> ModelConfig:
        """The shape of the side that reads the source."""
        return self._side(self.n_source_positions, self.n_encoder_layer)

    @property
    def decoder(self) -> ModelConfig:
        """The shape of the side that writes the target, cross-attention left out."""
        return self._side(self.n_target_positions, self.n_decoder_layer)

    def _side(self, n_positions: int, n_layer: int) -> ModelConfig:
        shared = {name: getattr(self, name) for name in (*_Width.model_fields, "p_dropout")}
        return ModelConfig(**shared, n_positions=n_positions, n_layer=n_layer)


class SamplingConfig(StrictModel):
    """How the next token is chosen."""

    temperature: float = Field(default=0.0, ge=0.0)
    """Logits are divided by it; 0: always the most likely token."""
    top_k: Annotated[int, Field(ge=1, strict=True)] | None = None
    """Only the k most likely tokens (all that tie with the k-th stay); None: all."""
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    """Only the fewest tokens whose probability, after temperature and top_k, adds up to at least
    this (nucleus sampling, Holtzman et al. 2020); None: all."""
