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

Left out everywhere, as in the literature: layer norms, softmax, GELU, the loss and the optimiser
(elementwise work, under 2 % of the arithmetic at these sizes).
"""

from __future__ import annotations

from typing import Literal, get_args

from model.config import ModelConfig

Convention = Literal["nanogpt", "matmul", "mac"]
CONVENTIONS: tuple[Convention, ...] = get_args(Convention)


def params_by_group(shape: ModelConfig) -> dict[str, int]:
    """Number of parameters in each group; the head is tied to the token embedding, counted once."""
    d, layers = shape.n_embd, shape.n_layer
    return {
        "token_embedding": shape.n_vocab * d,
        "position_embedding": shape.n_positions * d,
        "attention": layers * (4 * d * d + 4 * d),
        "feed_forward": layers * (8 * d * d + 5 * d),
        "layer_norm": layers * 4 * d + 2 * d,
    }


def count_params(shape: ModelConfig) -> int:
    """Number of parameters: V·D + P·D + L(12D² + 13D) + 2D."""
    return sum(params_by_group(shape).values())


def macs_per_token_by_part(shape: ModelConfig, seq_len: int) -> dict[str, int]:
    """Multiply-adds of the forward pass a token, by part, in sequences of `seq_len` tokens."""
    d, layers = shape.n_embd, shape.n_layer
    return {
        "head": shape.n_vocab * d,
        "attention_projections": layers * 4 * d * d,
        "attention_scores": layers * 2 * d * seq_len,
        "feed_forward": layers * 8 * d * d,
    }


def flops_per_token(shape: ModelConfig, seq_len: int, convention: Convention = "nanogpt") -> int:
    """Training FLOPs (forward + backward) a token.

    Args:
        shape: the model.
        seq_len: tokens in a training sequence; `nanogpt` charges n_positions instead.
        convention: see the module's text.
    """
    if convention == "nanogpt":
        attention = 12 * shape.n_layer * shape.n_embd * shape.n_positions
        return 6 * count_params(shape) + attention
    macs = 3 * sum(macs_per_token_by_part(shape, seq_len).values())
    return macs if convention == "mac" else 2 * macs


def flops_per_token_by_part(
    shape: ModelConfig, seq_len: int, convention: Convention = "matmul"
) -> dict[str, int]:
    """`flops_per_token` split into parts that add up to it exactly."""
    if convention == "nanogpt":
        parts = {name: 6 * count for name, count in params_by_group(shape).items()}
        parts["attention_scores"] = 12 * shape.n_layer * shape.n_embd * shape.n_positions
        return parts
    factor = 3 if convention == "mac" else 6
    return {name: factor * macs for name, macs in macs_per_token_by_part(shape, seq_len).items()}
