"""Parameters and training FLOPs of a model, from its shape alone. No torch, no pydantic.

Three conventions, all for forward and backward together, all exact integers:

`nanogpt`
    6 * n_params + 12 * n_layer * n_embd * n_positions per token, every parameter counted (a tied
    matrix once, look-up tables too). The formula of PaLM (Chowdhery et al. 2022, appendix B) as
    coded in nanoGPT and in the CMU 11-667 course. The legal tender of a budget.
`matmul`
    Every matrix product by its shapes, 2 FLOPs per multiply-add, backward = 2 x forward, attention
    over the full (unmasked) square, look-ups free. Equals what
    `torch.utils.flop_counter.FlopCounterMode` counts under math SDPA.
`mac`
    The same products, 1 per multiply-add.

Left out everywhere, as in the literature: layer norms, softmax, GELU, the loss and AdamW
(elementwise work, under 2 % of the arithmetic at these sizes). An optimiser that multiplies
matrices, whatever the batch, is charged per step, in `nanogpt` too (`trainer.optim`; Muon: 6 % of a
step of 2,048 tokens at D64 L2 with a sampled softmax, 25 % at D192 L6).

**Sampled softmax** (`logits_per_token`). Training may compute the logits of a few vocabulary
entries only (`model.sampled_softmax`). Every convention then charges the products with the rows of
these entries and of the target, instead of V rows. `nanogpt` charges each parameter because each is
multiplied; it then charges 6 FLOPs for each *active* parameter (`count_active_params`).

A token here is one that passes through the products, padding included. The encoder-only model has
the decoder's products, so what is said of one holds for both; who may see whom changes no count.

The encoder-decoder is counted per pair, of S source and T target tokens. `matmul` and `mac` are as
above, with cross-attention's scores over the full T x S. `nanogpt` is defined in the literature for
one stream only. Its extension here: 6 FLOPs per parameter for each token that passes through it,
and 12 * D for each token, layer and position that the token might see at full length:

    S * (6 * N_s + 12 * L_e * D * P_s) + T * (6 * N_t + 12 * L_d * D * (P_t + P_s))

N_s are the parameters that source tokens pass: source positions, encoder, and the key and value
projections of cross-attention. N_t are all others; the shared token matrix is among them, once, as
target tokens are multiplied by it. N_s + N_t = n_params: for S = T the first term is 6 * n_params.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from model.config import EncoderDecoderConfig, ModelConfig


class Convention(StrEnum):
    """How training FLOPs are counted; see the module's text."""

    NANOGPT = "nanogpt"
    MATMUL = "matmul"
    MAC = "mac"


FLOPS_PER_MAC = {Convention.MATMUL: 6, Convention.MAC: 3}
"""Of a multiply-add of the forward pass, with the two of the backward pass."""


def params_by_group(shape: ModelConfig | EncoderDecoderConfig) -> dict[str, int]:
    """Number of parameters in each group; the head is tied to the token embedding, counted once."""
    # Here, because `--help` lists the conventions and need not load pydantic for that.
    from model.config import EncoderDecoderConfig

    if isinstance(shape, EncoderDecoderConfig):
        source, target = _source_params(shape), _target_params(shape)
        return {group: source[group] + target[group] for group in target}
    d, inner, layers = shape.n_embd, shape.n_inner, shape.n_layer
    return {
        "token_embedding": shape.n_vocab * d,
        "position_embedding": shape.n_positions * d * (shape.positions == "learned"),
        "attention": layers * (4 * d * d + 4 * d * shape.bias),
        "feed_forward": layers * (2 * d * inner + (d + inner) * shape.bias),
        "layer_norm": (layers * 4 * d + 2 * d) * (shape.norm == "layer"),
    }


def count_params(shape: ModelConfig | EncoderDecoderConfig) -> int:
    """Number of parameters.

    V·D + P·D + L(12D² + 13D) + 2D, without P·D where positions rotate, 9D of each layer where there
    are no biases and (4L + 2)D where norms have no parameters; for the encoder-decoder
    V·D + (P_s + P_t)D + L_e(12D² + 13D) + L_d(16D² + 19D) + 4D.
    """
    return sum(params_by_group(shape).values())


def count_active_params(
    shape: ModelConfig | EncoderDecoderConfig, logits_per_token: int | None
) -> int:
    """Number of active parameters: those that a training step multiplies a token by.

    All of them, but for the rows of vocabulary entries that a sampled softmax leaves out.
    """
    if logits_per_token is None:
        return count_params(shape)
    return count_params(shape) - (shape.n_vocab - logits_per_token) * shape.n_embd


def macs_per_token_by_part(
    shape: ModelConfig, seq_len: int, logits_per_token: int | None = None
) -> dict[str, int]:
    """Multiply-adds of the forward pass per token, by part; arguments as in `flops_per_token`."""
    d, layers = shape.n_embd, shape.n_layer
    return {
        "head": (shape.n_vocab if logits_per_token is None else logits_per_token) * d,
        "attention_projections": layers * 4 * d * d,
        "attention_scores": layers * 2 * d * seq_len,
        "feed_forward": layers * 2 * d * shape.n_inner,
    }


def flops_per_token(
    shape: ModelConfig,
    seq_len: int,
    convention: Convention = Convention.NANOGPT,
    logits_per_token: int | None = None,
) -> int:
    """Training FLOPs (forward + backward) per token of sequences of `seq_len`.

    `nanogpt` charges n_positions instead; `logits_per_token` None: all V.
    """
    return sum(flops_per_token_by_part(shape, seq_len, convention, logits_per_token).values())


def flops_per_token_by_part(
    shape: ModelConfig, seq_len: int, convention: Convention, logits_per_token: int | None = None
) -> dict[str, int]:
    """`flops_per_token` split into parts that add up to it exactly."""
    if convention == Convention.NANOGPT:
        parts = {name: 6 * count for name, count in params_by_group(shape).items()}
        if logits_per_token is not None:
            parts["token_embedding"] = 6 * logits_per_token * shape.n_embd
        parts["attention_scores"] = 12 * shape.n_layer * shape.n_embd * shape.n_positions
        return parts
    macs = macs_per_token_by_part(shape, seq_len, logits_per_token)
    return {name: FLOPS_PER_MAC[convention] * count for name, count in macs.items()}


def flops_per_masked_sequence_by_part(
    shape: ModelConfig, seq_len: int, n_predicted: int, convention: Convention
) -> dict[str, int]:
    """Training FLOPs of a sequence, padding included, of which `n_predicted` tokens have logits.

    `nanogpt` charges the head at every token.
    """
    parts = flops_per_token_by_part(shape, seq_len, convention)
    computed = {"head": n_predicted}  # `nanogpt` has no part of this name
    return {name: computed.get(name, seq_len) * flops for name, flops in parts.items()}


def macs_per_pair_by_part(
    shape: EncoderDecoderConfig, source_len: int, target_len: int, n_predicted: int | None = None
) -> dict[str, int]:
    """Multiply-adds of the forward pass of a pair, by part; `n_predicted` None: T logits."""
    d, s, t = shape.n_embd, source_len, target_len
    encoder = macs_per_token_by_part(shape.encoder, s)
    decoder = macs_per_token_by_part(shape.decoder, t)
    return {
        "head": decoder["head"] * (t if n_predicted is None else n_predicted),
        "encoder_projections": encoder["attention_projections"] * s,
        "encoder_scores": encoder["attention_scores"] * s,
        "encoder_feed_forward": encoder["feed_forward"] * s,
        "decoder_projections": decoder["attention_projections"] * t,
        "decoder_scores": decoder["attention_scores"] * t,
        "cross_projections": shape.n_decoder_layer * 2 * d * d * (s + t),
        "cross_scores": shape.n_decoder_layer * 2 * d * s * t,
        "decoder_feed_forward": decoder["feed_forward"] * t,
    }


def flops_per_pair_by_part(
    shape: EncoderDecoderConfig,
    source_len: int,
    target_len: int,
    convention: Convention,
    n_predicted: int | None = None,
) -> dict[str, int]:
    """Training FLOPs (forward + backward) of S source and T target tokens, padding included.

    `nanogpt` charges the scores at full length and the head at every target token; the others
    charge the logits of `n_predicted` tokens (None: all).
    """
    if convention != Convention.NANOGPT:
        parts = macs_per_pair_by_part(shape, source_len, target_len, n_predicted)
        return {name: FLOPS_PER_MAC[convention] * macs for name, macs in parts.items()}
    source, target = _source_params(shape), _target_params(shape)
    parts = {name: 6 * (source_len * source[name] + target_len * target[name]) for name in target}
    encoder = shape.n_encoder_layer * shape.n_embd * source_len
    decoder = shape.n_decoder_layer * shape.n_embd * target_len
    parts["encoder_scores"] = 12 * encoder * shape.n_source_positions
    parts["decoder_scores"] = 12 * decoder * shape.n_target_positions
    parts["cross_scores"] = 12 * decoder * shape.n_source_positions
    return parts


def _source_params(shape: EncoderDecoderConfig) -> dict[str, int]:
    """Parameters that source tokens pass through; they only look up the token embedding."""
    cross = shape.n_decoder_layer * 2 * (shape.n_embd**2 + shape.n_embd)
    return {**params_by_group(shape.encoder), "token_embedding": 0, "cross_attention": cross}


def _target_params(shape: EncoderDecoderConfig) -> dict[str, int]:
    """Parameters that target tokens pass through."""
    d, layers, groups = shape.n_embd, shape.n_decoder_layer, params_by_group(shape.decoder)
    return {
        "token_embedding": groups["token_embedding"],
        "position_embedding": groups["position_embedding"],
        "attention": groups["attention"],
        "cross_attention": layers * 2 * (d * d + d),
        "feed_forward": groups["feed_forward"],
        "layer_norm": groups["layer_norm"] + layers * 2 * d,
    }
