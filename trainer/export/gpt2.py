"""A `DecoderLM` as a GPT-2 of `transformers`: the same numbers under other names.

`DecoderLM` is GPT-2 with the exact GELU and dropout in the same places. GPT-2 keeps q, k and v in
one matrix and stores every matrix as (in, out).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from budgetsweep.errors import ConfigError
from model.config import ModelConfig
from model.transformer import INIT_STD

GPT2_CONFIG = "config.json"
LAYER_NORM_EPSILON = 1e-5
"""Of every LayerNorm of `DecoderLM` (torch's default)."""

_PREFIX = "transformer."
_OUTER = {"wte": "token_embeddings", "wpe": "position_embeddings", "ln_f": "ln"}
_INNER = {
    "ln_1": "ln_1",
    "attn.c_proj": "mha.proj",
    "ln_2": "ln_2",
    "mlp.c_fc": "ff.linear_in",
    "mlp.c_proj": "ff.linear_out",
}
_QKV = ("mha.q_attn", "mha.k_attn", "mha.v_attn")


def to_gpt2(
    weights: dict[str, Tensor], shape: ModelConfig, eot: int | None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """config.json and tensors of `transformers`' GPT-2 for the same logits (see `require_gpt2`).

    `eot` is the end-of-text id of its tokenizer, for bos and eos; None: not known.
    """
    tensors = {}
    for theirs, ours in _OUTER.items():
        for kind in ("weight", "bias"):
            if f"{ours}.{kind}" in weights:  # embeddings have no bias
                tensors[f"{_PREFIX}{theirs}.{kind}"] = weights[f"{ours}.{kind}"]
    for i in range(shape.n_layer):
        ours, theirs = f"blocks.{i}", f"{_PREFIX}h.{i}"
        for kind in ("weight", "bias"):
            parts = [weights[f"{ours}.{part}.{kind}"] for part in _QKV]
            tensors[f"{theirs}.attn.c_attn.{kind}"] = _turned(torch.cat(parts))
            for name, our_name in _INNER.items():
                tensors[f"{theirs}.{name}.{kind}"] = _turned(weights[f"{ours}.{our_name}.{kind}"])
    config = {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": shape.n_vocab,
        "n_positions": shape.n_positions,
        "n_embd": shape.n_embd,
        "n_layer": shape.n_layer,
        "n_head": shape.n_head,
        "n_inner": shape.n_inner,
        "activation_function": "gelu",
        "resid_pdrop": shape.p_dropout,
        "embd_pdrop": shape.p_dropout,
        "attn_pdrop": shape.p_dropout,
        "layer_norm_epsilon": LAYER_NORM_EPSILON,
        "initializer_range": INIT_STD,
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "reorder_and_upcast_attn": False,
        "tie_word_embeddings": True,
        "bos_token_id": eot,
        "eos_token_id": eot,
        "torch_dtype": "float32",
    }
    return config, tensors


def require_gpt2(shape: ModelConfig, where: str) -> None:
    """Raise `ConfigError` for options that GPT-2 has not; those of how training began may be."""
    options = [
        f"{name}: {str(value).lower()}" for name, value in shape.options(at_start=False).items()
    ]
    if options:
        raise ConfigError(
            f"{where}: GPT-2's format cannot express {', '.join(options)}: convert to safetensors "
            "or pt"
        )


def _turned(tensor: Tensor) -> Tensor:
    """From (out, in) to GPT-2's (in, out); biases and LayerNorms stay as they are."""
    return tensor.T.contiguous() if tensor.ndim == 2 else tensor
