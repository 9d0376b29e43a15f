"""GPT-2 of `transformers` and `DecoderLM`: the same numbers under other names.

`DecoderLM` is GPT-2 with the exact GELU and dropout in the same places, so both directions are a
matter of names: GPT-2 keeps q, k and v in one matrix and stores every matrix as (in, out).
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from budgetsweep.config import parse
from budgetsweep.errors import CheckpointError, ConfigError
from model.config import ModelConfig
from model.transformer import INIT_STD
from trainer.export.weights import SCALE

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
_MASKS = (".attn.bias", ".attn.masked_bias")
"""Constants that old versions of `transformers` saved with the weights."""

logger = logging.getLogger("budgetsweep")


def to_gpt2(
    weights: dict[str, Tensor], shape: ModelConfig, eot: int | None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """config.json and tensors of `transformers`' GPT-2 for the same logits.

    Args:
        eot: end-of-text id of its tokenizer, for bos and eos; None: not known.

    Raises:
        ConfigError: the model has options that GPT-2 has not.
    """
    require_gpt2(shape, "this model")
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
    """Refuse a shape with options, but for those of how training began.

    Raises:
        ConfigError: GPT-2 has not all its options.
    """
    options = [
        f"{name}: {str(value).lower()}" for name, value in shape.options(at_start=False).items()
    ]
    if options:
        raise ConfigError(
            f"{where}: GPT-2's format cannot express {', '.join(options)}: convert to safetensors "
            "or pt"
        )


def from_gpt2(
    config: dict[str, Any], tensors: dict[str, Tensor], where: Path
) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Shape and weights of a `DecoderLM` that gives the logits of a GPT-2 of `transformers`.

    Args:
        tensors: its tensors, with or without the prefix `transformer.`.

    Raises:
        CheckpointError: not a GPT-2, one that computes something else (such as OpenAI's own, with
            the tanh approximation of GELU), or tensors are missing.
    """
    where = where.with_name(GPT2_CONFIG)
    shape = _shape_of_gpt2(config, where)
    theirs = {name.removeprefix(_PREFIX): tensor for name, tensor in tensors.items()}
    theirs = {name: t for name, t in theirs.items() if not name.endswith(_MASKS)}
    head = theirs.pop("lm_head.weight", None)
    if head is not None and not torch.equal(head, theirs.get("wte.weight", torch.empty(0))):
        raise CheckpointError(f"{where}: its head is not tied to the embeddings; ours always is")
    weights: dict[str, Tensor] = {}
    for name, tensor in theirs.items():
        weights |= _renamed(name, tensor, shape.n_embd)
    blocks = {name.split(".")[1] for name in weights if name.startswith("blocks.")}
    scales = {f"blocks.{i}.{SCALE}": torch.tensor(shape.head_dim**-0.5) for i in blocks}
    return shape, weights | scales


def _renamed(name: str, tensor: Tensor, width: int) -> dict[str, Tensor]:
    """Our tensors for one of GPT-2's; an unknown one keeps its name, to be refused later."""
    stem, _, kind = name.rpartition(".")
    if stem in _OUTER:
        return {f"{_OUTER[stem]}.{kind}": tensor}
    parts = stem.split(".", 2)
    if len(parts) < 3 or parts[0] != "h":
        return {name: tensor}
    block, inner = f"blocks.{parts[1]}", parts[2]
    tensor = _turned(tensor)
    if inner in _INNER:
        return {f"{block}.{_INNER[inner]}.{kind}": tensor}
    if inner == "attn.c_attn" and tensor.shape[:1] == (3 * width,):
        pieces = zip(_QKV, torch.chunk(tensor, 3), strict=True)
        return {f"{block}.{part}.{kind}": piece.contiguous() for part, piece in pieces}
    return {name: tensor}


def _turned(tensor: Tensor) -> Tensor:
    """Between (out, in) and GPT-2's (in, out); biases and LayerNorms stay as they are."""
    return tensor.T.contiguous() if tensor.ndim == 2 else tensor


def _shape_of_gpt2(config: dict[str, Any], where: Path) -> ModelConfig:
    if config.get("model_type") != "gpt2":
        raise CheckpointError(
            f"{where}: model_type = {config.get('model_type')!r}; of `transformers`' models only "
            "gpt2 can be read"
        )
    drops = [config.get(key, 0.1) for key in ("resid_pdrop", "embd_pdrop", "attn_pdrop")]
    sizes = {
        "n_vocab": config.get("vocab_size", 50257),
        "n_embd": config.get("n_embd", 768),
        "n_head": config.get("n_head", 12),
        "n_positions": config.get("n_positions", 1024),
        "n_layer": config.get("n_layer", 12),
    }
    shape = parse(ModelConfig, {**sizes, "p_dropout": drops[0]}, str(where))
    must_be: dict[
        str, tuple[Any, tuple[Any, ...]]
    ] = {  # default of GPT2Config, what is computed here
        "activation_function": ("gelu_new", ("gelu",)),
        "layer_norm_epsilon": (1e-5, (LAYER_NORM_EPSILON,)),
        "n_inner": (None, (None, shape.n_inner)),
        "scale_attn_weights": (True, (True,)),
        "scale_attn_by_inverse_layer_idx": (False, (False,)),
        "add_cross_attention": (False, (False,)),
        "tie_word_embeddings": (True, (True,)),
    }
    for key, (default, accepted) in must_be.items():
        value = config.get(key, default)
        if value not in accepted:
            raise CheckpointError(
                f"{where}: {key} = {value!r}, but this model computes {accepted[-1]!r}"
                + (" (the exact GELU)" if key == "activation_function" else "")
                + ": its logits would differ"
            )
    if len(set(drops)) > 1:
        logger.warning("%s: three dropouts, %s; p_dropout is the first", where, drops)
    return shape
