"""The from-scratch transformers: shapes and FLOPs without torch, layers and models with it.

No data, no optimiser and no file format lives here. The layers are loaded when they are first asked
for, so that `import model.config` stays free of torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from model.classification import classify_binary_sentiment
    from model.course import DecoderBlock, FeedForward, MultiHeadAttention
    from model.decoder import DecoderLM
    from model.encoder import EncoderLM, corrupt_tokens
    from model.encoder_decoder import EncoderDecoderLM
    from model.generation.decoding import generate, score
    from model.generation.sampling import softmax_with_temperature

__all__ = [
    "DecoderBlock",
    "DecoderLM",
    "EncoderDecoderLM",
    "EncoderLM",
    "FeedForward",
    "MultiHeadAttention",
    "classify_binary_sentiment",
    "corrupt_tokens",
    "generate",
    "score",
    "softmax_with_temperature",
]

_HOME = {
    "DecoderBlock": "course",
    "DecoderLM": "decoder",
    "EncoderDecoderLM": "encoder_decoder",
    "EncoderLM": "encoder",
    "FeedForward": "course",
    "MultiHeadAttention": "course",
    "classify_binary_sentiment": "classification",
    "corrupt_tokens": "encoder",
    "generate": "generation.decoding",
    "score": "generation.decoding",
    "softmax_with_temperature": "generation.sampling",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"model.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
