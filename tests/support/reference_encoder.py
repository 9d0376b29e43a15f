"""Encoder and encoder-decoder again, slowly: one sample, one head, one position at a time.

Written from the formulas (Vaswani et al. 2017; Radford et al. 2019) on the elementary operations
of `reference`. There is no padding here: it is taken out before anything is computed. A source may
be empty.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from tests.support.reference_decoder import (
    Drop,
    Parameters,
    gelu,
    keep_all,
    layer_norm,
    linear,
    softmax,
)

Sees = Callable[[int, int], bool]
"""Whether query t may see key s."""


def everything(t: int, s: int) -> bool:
    return True


def the_past(t: int, s: int) -> bool:
    return s <= t


def attention(
    x: Tensor, memory: Tensor, p: Parameters, name: str, n_head: int, sees: Sees, drop: Drop
) -> Tensor:
    """x (T, D) asks, memory (S, D) is seen."""
    T, D = x.shape
    q = linear(x, p, f"{name}.q_attn")
    k, v = linear(memory, p, f"{name}.k_attn"), linear(memory, p, f"{name}.v_attn")
    heads = []
    for head in range(n_head):
        columns = slice(head * D // n_head, (head + 1) * D // n_head)
        rows = []
        for t in range(T):
            seen = [s for s in range(len(memory)) if sees(t, s)]
            row = torch.zeros(D // n_head, dtype=x.dtype)
            if seen:
                scores = torch.stack([q[t, columns] @ k[s, columns] for s in seen])
                weights = softmax(scores / math.sqrt(D / n_head))
                weights = drop(f"{name}.weights.{head}.{t}", weights)
                for weight, s in zip(weights, seen, strict=True):
                    row = row + weight * v[s, columns]
            rows.append(row)
        heads.append(torch.stack(rows) if rows else x[:, columns])
    return drop(f"{name}.output", linear(torch.cat(heads, dim=1), p, f"{name}.proj"))


def feed_forward(x: Tensor, p: Parameters, block: str, drop: Drop) -> Tensor:
    middle = gelu(linear(layer_norm(x, p, f"{block}.ln_2"), p, f"{block}.ff.linear_in"))
    return drop(f"{block}.ff.output", linear(middle, p, f"{block}.ff.linear_out"))


def encoder_stack(
    x: Tensor, p: Parameters, blocks: str, n_layer: int, n_head: int, drop: Drop
) -> Tensor:
    for i in range(n_layer):
        block = f"{blocks}.{i}"
        normed = layer_norm(x, p, f"{block}.ln_1")
        x = x + attention(normed, normed, p, f"{block}.mha", n_head, everything, drop)
        x = x + feed_forward(x, p, block, drop)
    return x


def encoder_logits(
    p: Parameters, ids: Tensor, n_head: int, n_layer: int, drop: Drop = keep_all
) -> Tensor:
    """Logits (S, V) of one sequence (S,)."""
    embedding = p["token_embeddings.weight"]
    x = drop("embedding", embedding[ids] + p["position_embeddings.weight"][: len(ids)])
    return layer_norm(encoder_stack(x, p, "blocks", n_layer, n_head, drop), p, "ln") @ embedding.T


def pair_logits(
    p: Parameters,
    source: Tensor,
    target: Tensor,
    n_head: int,
    n_layers: tuple[int, int],
    drop: Drop = keep_all,
) -> Tensor:
    """Logits (T, V) of one target (T,) after one source (S,); layers of encoder and decoder."""
    embedding = p["token_embeddings.weight"]
    x = embedding[source] + p["source_position_embeddings.weight"][: len(source)]
    x = drop("source.embedding", x)
    x = encoder_stack(x, p, "encoder_blocks", n_layers[0], n_head, drop)
    memory = layer_norm(x, p, "encoder_ln")
    y = embedding[target] + p["target_position_embeddings.weight"][: len(target)]
    y = drop("target.embedding", y)
    for i in range(n_layers[1]):
        block = f"decoder_blocks.{i}"
        normed = layer_norm(y, p, f"{block}.ln_1")
        y = y + attention(normed, normed, p, f"{block}.mha", n_head, the_past, drop)
        asking = layer_norm(y, p, f"{block}.ln_cross")
        y = y + attention(asking, memory, p, f"{block}.cross", n_head, everything, drop)
        y = y + feed_forward(y, p, block, drop)
    return layer_norm(y, p, "ln") @ embedding.T
