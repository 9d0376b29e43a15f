"""Parameters and training FLOPs of a model, from its shape alone.

Three conventions, all for forward and backward together, all exact integers:

`nanogpt`
    6 * n_params + 12 * n_layer * n_embd * n_positions a token, every parameter counted (a tied
    matrix once, look-up tables too). The formula of PaLM (Chowdhery et al. 2022, appendix B) as
    coded in nanoGPT and in the CMU 11-667 course. The legal tender of a budget.
`matmul`
    Every matrix product by its shapes, 2 FLOPs a multiply-add, backward = 2 x forward, attention
    over the full (unmasked) square, look-ups free. Equals what
    `torch.utils.flop_counter.FlopCounterMode` counts under math SDPA.
`mac`
    The same products, 1 a multiply-add.

Left out everywhere, as in the literature: layer norms, softmax, GELU, the loss and AdamW
(elementwise work, under 2 % of the arithmetic at these sizes). An optimiser that multiplies
matrices, whatever the batch, is charged per step, in `nanogpt` too (`trainer.optim`; Muon: 6 % of a
step of 2,048 tokens at D64 L2 with a sampled softmax, 25 % at D192 L6).

**A sampled head** (`head_rows`). Training may compute the logits of a few token ids only
(`model.sampled_softmax`). Every convention then charges the products with these rows of the matrix
and with the target's, instead of V rows; `nanogpt`, which charges each parameter because each is
multiplied, charges 6 FLOPs for each parameter that is. Rotation, like all elementwise work, is left
out, and so is what is only looked up.

A token here is one that passes through the products, padding included. The encoder-only model has
the decoder's products, so what is said of one holds for both; who may see whom changes no count.

The encoder-decoder is counted a pair, of S source and T target tokens. `matmul` and `mac` are as
above, with cross-attention's scores over the full T x S. `nanogpt` is defined in the literature for
one stream only. Its extension here: 6 FLOPs a parameter for each token that passes through it, and
12 * D for each token, layer and position that the token might see at full length:

    S * (6 * N_s + 12 * L_e * D * P_s) + T * (6 * N_t + 12 * L_d * D * (P_t + P_s))

N_s are the parameters that source tokens pass: source positions, encoder, and the key and value
projections of cross-attention. N_t are all others; the shared token matrix is among them, once, as
target tokens are multiplied by it. N_s + N_t = n_params: for S = T the first term is 6 * n_params.
"""

from __future__ import annotations

from typing import Literal, get_args

from model.config import EncoderDecoderConfig, ModelConfig

Convention = Literal["nanogpt", "matmul", "mac"]
CONVENTIONS: tuple[Convention, ...] = get_args(Convention)


def params_by_group(shape: ModelConfig | EncoderDecoderConfig) -> dict[str, int]:
    """Number of parameters in each group; the head is tied to the token embedding, counted once."""
    if isinstance(shape, EncoderDecoderConfig):
        source, target = _source_params(shape), _target_params(shape)
        return {group: source[group] + target[group] for group in target}
    d, layers = shape.n_embd, shape.n_layer
    learned, biases = shape.positions == "learned", d * shape.bias
    return {
        "token_embedding": shape.n_vocab * d,
        "position_embedding": shape.n_positions * d * learned,
        "attention": layers * (4 * d * d + 4 * biases),
        "feed_forward": layers * (8 * d * d + 5 * biases),
        "layer_norm": (layers * 4 * d + 2 * d) * (shape.norm == "layer"),
    }


def count_params(shape: ModelConfig | EncoderDecoderConfig) -> int:
    """Number of parameters.

    V·D + P·D + L(12D² + 13D) + 2D, without P·D where positions rotate, 9D of each layer where there
    are no biases and (4L + 2)D where norms have no parameters; for the encoder-decoder
    V·D + (P_s + P_t)D + L_e(12D² + 13D) + L_d(16D² + 19D) + 4D.
    """
    return sum(params_by_group(shape).values())


def macs_per_token_by_part(
    shape: ModelConfig, seq_len: int, head_rows: int | None = None
) -> dict[str, int]:
    """Multiply-adds of the forward pass a token, by part.

    Args:
        shape: the model.
        seq_len: tokens of a sequence.
        head_rows: token ids whose logits are computed for a token; None: all.
    """
    d, layers = shape.n_embd, shape.n_layer
    return {
        "head": (shape.n_vocab if head_rows is None else head_rows) * d,
        "attention_projections": layers * 4 * d * d,
        "attention_scores": layers * 2 * d * seq_len,
        "feed_forward": layers * 8 * d * d,
    }


def flops_per_token(
    shape: ModelConfig,
    seq_len: int,
    convention: Convention = "nanogpt",
    head_rows: int | None = None,
) -> int:
    """Training FLOPs (forward + backward) a token.

    Args:
        shape: the model.
        seq_len: tokens in a training sequence; `nanogpt` charges n_positions instead.
        convention: see the module's text.
        head_rows: token ids whose logits are computed for a token; None: all.
    """
    return sum(flops_per_token_by_part(shape, seq_len, convention, head_rows).values())


def flops_per_token_by_part(
    shape: ModelConfig,
    seq_len: int,
    convention: Convention = "matmul",
    head_rows: int | None = None,
) -> dict[str, int]:
    """`flops_per_token` split into parts that add up to it exactly."""
    if convention == "nanogpt":
        parts = {name: 6 * count for name, count in params_by_group(shape).items()}
        if head_rows is not None:
            parts["token_embedding"] = 6 * head_rows * shape.n_embd
        parts["attention_scores"] = 12 * shape.n_layer * shape.n_embd * shape.n_positions
        return parts
    factor = 3 if convention == "mac" else 6
    macs = macs_per_token_by_part(shape, seq_len, head_rows)
    return {name: factor * count for name, count in macs.items()}


def flops_per_masked_sequence_by_part(
    shape: ModelConfig, seq_len: int, n_predicted: int, convention: Convention = "matmul"
) -> dict[str, int]:
    """`flops_per_masked_sequence` split into parts that add up to it exactly."""
    parts = flops_per_token_by_part(shape, seq_len, convention)
    positions = dict.fromkeys(parts, seq_len)
    if convention != "nanogpt":
        positions["head"] = n_predicted
    return {name: positions[name] * flops for name, flops in parts.items()}


def flops_per_masked_sequence(
    shape: ModelConfig, seq_len: int, n_predicted: int, convention: Convention = "nanogpt"
) -> int:
    """Training FLOPs of a sequence of which only some tokens are predicted (masked-token training).

    Args:
        shape: the encoder.
        seq_len: tokens of the sequence, padding included.
        n_predicted: tokens whose logits are computed; `nanogpt` charges the head at every token.
        convention: see the module's text.
    """
    parts = flops_per_masked_sequence_by_part(shape, seq_len, n_predicted, convention)
    return sum(parts.values())


def macs_per_pair_by_part(
    shape: EncoderDecoderConfig, source_len: int, target_len: int, n_predicted: int | None = None
) -> dict[str, int]:
    """Multiply-adds of the forward pass of a pair, by part.

    Args:
        shape: the model.
        source_len: tokens of the source (S), padding included.
        target_len: tokens of the target (T), padding included.
        n_predicted: target tokens whose logits are computed; None: all T, as `forward` does.
    """
    d, s, t = shape.n_embd, source_len, target_len
    encoder, decoder = shape.n_encoder_layer, shape.n_decoder_layer
    return {
        "head": (t if n_predicted is None else n_predicted) * shape.n_vocab * d,
        "encoder_projections": encoder * 4 * d * d * s,
        "encoder_scores": encoder * 2 * d * s * s,
        "encoder_feed_forward": encoder * 8 * d * d * s,
        "decoder_projections": decoder * 4 * d * d * t,
        "decoder_scores": decoder * 2 * d * t * t,
        "cross_projections": decoder * 2 * d * d * (s + t),
        "cross_scores": decoder * 2 * d * s * t,
        "decoder_feed_forward": decoder * 8 * d * d * t,
    }


def flops_per_pair_by_part(
    shape: EncoderDecoderConfig,
    source_len: int,
    target_len: int,
    convention: Convention = "matmul",
    n_predicted: int | None = None,
) -> dict[str, int]:
    """`flops_per_pair` split into parts that add up to it exactly."""
    if convention != "nanogpt":
        factor = 3 if convention == "mac" else 6
        parts = macs_per_pair_by_part(shape, source_len, target_len, n_predicted)
        return {name: factor * macs for name, macs in parts.items()}
    source, target = _source_params(shape), _target_params(shape)
    parts = {name: 6 * (source_len * source[name] + target_len * target[name]) for name in target}
    encoder = shape.n_encoder_layer * shape.n_embd * source_len
    decoder = shape.n_decoder_layer * shape.n_embd * target_len
    parts["encoder_scores"] = 12 * encoder * shape.n_source_positions
    parts["decoder_scores"] = 12 * decoder * shape.n_target_positions
    parts["cross_scores"] = 12 * decoder * shape.n_source_positions
    return parts


def flops_per_pair(
    shape: EncoderDecoderConfig,
    source_len: int,
    target_len: int,
    convention: Convention = "nanogpt",
    n_predicted: int | None = None,
) -> int:
    """Training FLOPs (forward + backward) of a pair of source and target.

    Args:
        shape: the model.
        source_len: tokens of the source (S), padding included.
        target_len: tokens of the target (T), padding included.
        convention: see the module's text; `nanogpt` charges the scores at full length.
        n_predicted: target tokens whose logits are computed; None: all. `nanogpt` charges the head
            at every target token.
    """
    parts = flops_per_pair_by_part(shape, source_len, target_len, convention, n_predicted)
    return sum(parts.values())


def _source_params(shape: EncoderDecoderConfig) -> dict[str, int]:
    """Parameters that source tokens pass through; they only look up the token embedding."""
    d, encoder, decoder = shape.n_embd, shape.n_encoder_layer, shape.n_decoder_layer
    return {
        "token_embedding": 0,
        "position_embedding": shape.n_source_positions * d,
        "attention": encoder * (4 * d * d + 4 * d),
        "cross_attention": decoder * (2 * d * d + 2 * d),
        "feed_forward": encoder * (8 * d * d + 5 * d),
        "layer_norm": encoder * 4 * d + 2 * d,
    }


def _target_params(shape: EncoderDecoderConfig) -> dict[str, int]:
    """Parameters that target tokens pass through."""
    d, decoder = shape.n_embd, shape.n_decoder_layer
    return {
        "token_embedding": shape.n_vocab * d,
        "position_embedding": shape.n_target_positions * d,
        "attention": decoder * (4 * d * d + 4 * d),
        "cross_attention": decoder * (2 * d * d + 2 * d),
        "feed_forward": decoder * (8 * d * d + 5 * d),
        "layer_norm": decoder * 6 * d + 2 * d,
    }
