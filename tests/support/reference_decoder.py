"""The decoder again, slowly: float64, one sample, one head, one position at a time.

Written from the formulas (Vaswani et al. 2017; Radford et al. 2019; for the options Su et al. 2021,
Zhang & Sennrich 2019, So et al. 2021), with nothing but elementary operations, so that autograd
gives gradients that owe nothing to the package. Padding is not masked here: padded positions are
taken out of the prompt before anything is computed.
"""

import math
import sys
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

Parameters = dict[str, Tensor]
Drop = Callable[[str, Tensor], Tensor]
"""Drops parts of the tensor at a named place."""
Options = Mapping[str, object]
"""What differs from GPT-2, as `ModelConfig.options` tells it."""
GPT2: Options = {}


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


def divided_by_rms(x: Tensor) -> Tensor:
    mean_square = sum(x[..., i] ** 2 for i in range(x.shape[-1])) / x.shape[-1]
    return x / torch.sqrt(mean_square + sys.float_info.epsilon)[..., None]


def norm(x: Tensor, parameters: Parameters, name: str, options: Options) -> Tensor:
    if options.get("norm") == "rms":
        return divided_by_rms(x)
    return layer_norm(x, parameters, name)


def linear(x: Tensor, parameters: Parameters, name: str, options: Options = GPT2) -> Tensor:
    product = torch.einsum("ti,oi->to", x, parameters[f"{name}.weight"])
    return product if options.get("bias") is False else product + parameters[f"{name}.bias"]


def turned(x: Tensor, t: int) -> Tensor:
    """x (HD,) at position t, each pair (i, i + HD/2) turned by t / 10000^(2i/HD)."""
    half = len(x) // 2
    entries = [x[0]] * len(x)
    for i in range(half):
        angle = t * 10_000.0 ** (-2 * i / len(x))
        # The package keeps cosine and sine in float32.
        cos, sin = torch.tensor([math.cos(angle), math.sin(angle)]).tolist()
        entries[i] = x[i] * cos - x[half + i] * sin
        entries[half + i] = x[i] * sin + x[half + i] * cos
    return torch.stack(entries)


def compared(x: Tensor, t: int, options: Options) -> Tensor:
    """A query or a key (HD,) of position t as it enters the scores."""
    if options.get("qk_norm"):
        x = divided_by_rms(x)
    return turned(x, t) if options.get("positions") == "rope" else x


def attention(
    x: Tensor,
    parameters: Parameters,
    name: str,
    n_head: int,
    drop: Drop,
    options: Options = GPT2,
) -> Tensor:
    """x: (T, D) of one sample without padding."""
    T, D = x.shape
    q, k, v = (linear(x, parameters, f"{name}.{part}_attn", options) for part in "qkv")
    heads = []
    for head in range(n_head):
        columns = slice(head * D // n_head, (head + 1) * D // n_head)
        queries = [compared(q[t, columns], t, options) for t in range(T)]
        keys = [compared(k[t, columns], t, options) for t in range(T)]
        rows = []
        for t in range(T):
            scores = torch.stack([queries[t] @ keys[s] for s in range(t + 1)])
            weights = softmax(scores / math.sqrt(D / n_head))
            weights = drop(f"{name}.weights.{head}.{t}", weights)
            rows.append(sum(weights[s] * v[s, columns] for s in range(t + 1)))
        heads.append(torch.stack(rows))
    whole = linear(torch.cat(heads, dim=1), parameters, f"{name}.proj", options)
    return drop(f"{name}.output", whole)


def logits_of_prompt(
    parameters: Parameters,
    ids: Tensor,
    n_head: int,
    n_layer: int,
    drop: Drop = keep_all,
    options: Options = GPT2,
) -> Tensor:
    """Logits (T, V) of one prompt (T,) without padding; `parameters` has head_bias, if wanted."""
    embedding = parameters["token_embeddings.weight"]
    x = embedding[ids]
    if options.get("positions") != "rope":
        x = x + parameters["position_embeddings.weight"][: len(ids)]
    x = drop("embedding", x)
    for i in range(n_layer):
        block = f"blocks.{i}"
        normed = norm(x, parameters, f"{block}.ln_1", options)
        x = x + attention(normed, parameters, f"{block}.mha", n_head, drop, options)
        normed = norm(x, parameters, f"{block}.ln_2", options)
        middle = linear(normed, parameters, f"{block}.ff.linear_in", options)
        if options.get("activation") == "relu2":
            middle = torch.where(middle > 0, middle * middle, torch.zeros_like(middle))
        else:
            middle = gelu(middle)
        outer = linear(middle, parameters, f"{block}.ff.linear_out", options)
        x = x + drop(f"{block}.ff.output", outer)
    logits = norm(x, parameters, "ln", options) @ embedding.T
    return logits + parameters["head_bias"] if options.get("head_bias") else logits


def next_token_loss(logits: Tensor, ids: Tensor) -> Tensor:
    """Mean of -log p(next token) over one prompt."""
    losses = [-torch.log(softmax(logits[t])[ids[t + 1]]) for t in range(len(ids) - 1)]
    return torch.stack(losses).mean()
