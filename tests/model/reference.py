"""The decoder again, slowly: float64, one sample, one head, one position at a time.

Written from the formulas (Vaswani et al. 2017; Radford et al. 2019), with nothing but elementary
operations, so that autograd gives gradients that owe nothing to the package. Padding is not masked
here: padded positions are taken out of the prompt before anything is computed.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

Parameters = dict[str, Tensor]
Drop = Callable[[str, Tensor], Tensor]
"""Drops parts of the tensor at a named place."""


def keep_all(_place: str, x: Tensor) -> Tensor:
    return x


def softmax(x: Tensor) -> Tensor:
    e = torch.exp(x - x.max().detach())
    return e / e.sum()


def gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1.0 + torch.erf(x / math.sqrt(2.0)))


def layer_norm(x: Tensor, parameters: Parameters, name: str) -> Tensor:
    centred = x - x.mean(dim=-1, keepdim=True)
    variance = (centred**2).mean(dim=-1, keepdim=True)
    scaled = centred / torch.sqrt(variance + 1e-5)
    return scaled * parameters[f"{name}.weight"] + parameters[f"{name}.bias"]


def linear(x: Tensor, parameters: Parameters, name: str) -> Tensor:
    return torch.einsum("ti,oi->to", x, parameters[f"{name}.weight"]) + parameters[f"{name}.bias"]


def attention(x: Tensor, parameters: Parameters, name: str, n_head: int, drop: Drop) -> Tensor:
    """x: (T, D) of one sample without padding."""
    T, D = x.shape
    q, k, v = (linear(x, parameters, f"{name}.{part}_attn") for part in "qkv")
    heads = []
    for head in range(n_head):
        columns = slice(head * D // n_head, (head + 1) * D // n_head)
        rows = []
        for t in range(T):
            scores = torch.stack([q[t, columns] @ k[s, columns] for s in range(t + 1)])
            weights = softmax(scores / math.sqrt(D / n_head))
            weights = drop(f"{name}.weights.{head}.{t}", weights)
            rows.append(sum(weights[s] * v[s, columns] for s in range(t + 1)))
        heads.append(torch.stack(rows))
    return drop(f"{name}.output", linear(torch.cat(heads, dim=1), parameters, f"{name}.proj"))


def logits_of_prompt(
    parameters: Parameters, ids: Tensor, n_head: int, n_layer: int, drop: Drop = keep_all
) -> Tensor:
    """Logits (T, V) of one prompt (T,) without padding."""
    embedding = parameters["token_embeddings.weight"]
    x = embedding[ids] + parameters["position_embeddings.weight"][: len(ids)]
    x = drop("embedding", x)
    for i in range(n_layer):
        block = f"blocks.{i}"
        normed = layer_norm(x, parameters, f"{block}.ln_1")
        x = x + attention(normed, parameters, f"{block}.mha", n_head, drop)
        middle = gelu(
            linear(layer_norm(x, parameters, f"{block}.ln_2"), parameters, f"{block}.ff.linear_in")
        )
        x = x + drop(f"{block}.ff.output", linear(middle, parameters, f"{block}.ff.linear_out"))
    return layer_norm(x, parameters, "ln") @ embedding.T


def next_token_loss(logits: Tensor, ids: Tensor) -> Tensor:
    """Mean of -log p(next token) over one prompt."""
    losses = [-torch.log(softmax(logits[t])[ids[t + 1]]) for t in range(len(ids) - 1)]
    return torch.stack(losses).mean()
