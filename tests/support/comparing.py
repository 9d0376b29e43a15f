"""Helpers to compare a model with a plain reference, over shapes of every kind."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from model import EncoderDecoderLM
from model.config import EncoderDecoderConfig, ModelConfig

ALL_OPTIONS: dict[str, Any] = {
    "positions": "rope",
    "norm": "rms",
    "qk_norm": True,
    "activation": "relu2",
    "bias": False,
    "zero_init": True,
    "head_bias": "unigram",
}
"""What a decoder can have that GPT-2 has not."""
EACH_AND_ALL: list[dict[str, Any]] = [
    *({name: value} for name, value in ALL_OPTIONS.items()),
    ALL_OPTIONS,
]


def part_shape(n_embd: int, n_head: int, p_dropout: float = 0.0, **options: Any) -> ModelConfig:
    """Of a block or a part of one, to which sizes of the whole model are nothing."""
    sizes = {"n_embd": n_embd, "n_head": n_head, "n_vocab": 1, "n_positions": 1, "n_layer": 1}
    return ModelConfig(**sizes, p_dropout=p_dropout, **options)


def named(options: dict[str, Any]) -> str:
    """What pytest calls a case of `EACH_AND_ALL`."""
    return "all" if options == ALL_OPTIONS else "-".join(options)


def gradients(loss: Tensor, model: nn.Module) -> dict[str, Tensor]:
    names, parameters = zip(*model.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))


def assert_same_derivatives(ours: Tensor, expected: Tensor, inputs: Sequence[Tensor]) -> None:
    """Values and gradients in inputs are equal."""
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)
    direction = torch.randn_like(ours)
    found = [
        torch.autograd.grad(
            (each * direction).sum(), inputs, allow_unused=True, materialize_grads=True
        )
        for each in (ours, expected)
    ]
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def assert_same_gradients(ours: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name, gradient in expected.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-9, atol=1e-12, msg=name)


@torch.no_grad()
def vary(model: EncoderDecoderLM) -> None:
    """What it writes depends on the source, on the prefix and on what it has written."""
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            std = 1.0 if "embeddings" in name else 2.0 / math.sqrt(parameter.shape[1])
            torch.nn.init.normal_(parameter, std=std)
    weight = model.token_embeddings.weight  # of equal length: else one long row is always the best
    weight.mul_(math.sqrt(weight.shape[1]) / weight.norm(dim=1, keepdim=True))


class CapturedDropout:
    """Real dropout whose masks are kept, in the order in which the model draws them."""

    def __init__(self) -> None:
        self.masks: list[Tensor] = []

    def __call__(
        self, x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
    ) -> Tensor:
        assert training
        mask = (torch.rand_like(x) >= p) / (1 - p)
        self.masks.append(mask)
        return x * mask


class Dropped:
    """Dropout of the reference: each place has a mask, used once."""

    def __init__(self, places: dict[str, Tensor]) -> None:
        self.unused = dict(places)

    def __call__(self, place: str, x: Tensor) -> Tensor:
        return x * self.unused.pop(place)


@st.composite
def shapes(draw: st.DrawFn) -> ModelConfig:
    """Small shapes of a decoder or an encoder."""
    n_head = draw(st.integers(1, 4))
    return ModelConfig(
        n_vocab=draw(st.integers(2, 200)),
        n_embd=n_head * draw(st.integers(1, 12)),
        n_head=n_head,
        n_positions=draw(st.integers(1, 24)),
        n_layer=draw(st.integers(1, 3)),
        p_dropout=draw(st.sampled_from([0.0, 0.1])),
    )


@st.composite
def pair_shapes(draw: st.DrawFn, head_dims: tuple[int, int] = (2, 6)) -> EncoderDecoderConfig:
    """Small shapes of an encoder-decoder."""
    n_head = draw(st.integers(1, 3))
    return EncoderDecoderConfig(
        n_vocab=draw(st.integers(3, 40)),
        n_embd=n_head * draw(st.integers(*head_dims)),
        n_head=n_head,
        n_source_positions=draw(st.integers(1, 7)),
        n_target_positions=draw(st.integers(1, 10)),
        n_encoder_layer=draw(st.integers(1, 3)),
        n_decoder_layer=draw(st.integers(1, 3)),
        p_dropout=draw(st.sampled_from([0.0, 0.1])),
    )


@st.composite
def decoder_shapes(draw: st.DrawFn) -> ModelConfig:
    """Small shapes of a decoder with any of the options; heads of even width, where they rotate."""
    chosen = draw(st.sets(st.sampled_from(sorted(ALL_OPTIONS))))
    shape = draw(shapes())
    width = shape.n_embd * (2 if "positions" in chosen and shape.head_dim % 2 else 1)
    options = {name: ALL_OPTIONS[name] for name in chosen}
    return ModelConfig.model_validate({**shape.model_dump(), "n_embd": width, **options})
