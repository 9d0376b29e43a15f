"""The from-scratch transformers: shapes and FLOPs without torch, layers and models with it.

The layers are loaded when they are first asked for, so that `import model.config` stays free of
torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from model.attention import CrossAttention, MultiHeadAttention
    from model.classification import classify_binary_sentiment
    from model.decoder import DecoderLM
    from model.encoder import EncoderLM, corrupt_tokens, masked_token_loss
    from model.encoder_decoder import EncoderDecoderLM, target_loss
    from model.generation.decoding import generate, score
    from model.generation.sampling import softmax_with_temperature
    from model.layers import CrossDecoderBlock, DecoderBlock, EncoderBlock, FeedForward

_HOME = {
    "CrossAttention": "model.attention",
    "CrossDecoderBlock": "model.layers",
    "DecoderBlock": "model.layers",
    "DecoderLM": "model.decoder",
    "EncoderBlock": "model.layers",
    "EncoderDecoderLM": "model.encoder_decoder",
    "EncoderLM": "model.encoder",
    "FeedForward": "model.layers",
    "MultiHeadAttention": "model.attention",
    "classify_binary_sentiment": "model.classification",
    "corrupt_tokens": "model.encoder",
    "generate": "model.generation.decoding",
    "masked_token_loss": "model.encoder",
    "score": "model.generation.decoding",
    "softmax_with_temperature": "model.generation.sampling",
    "target_loss": "model.encoder_decoder",
}

__all__ = [
    "CrossAttention",
    "CrossDecoderBlock",
    "DecoderBlock",
    "DecoderLM",
    "EncoderBlock",
    "EncoderDecoderLM",
    "EncoderLM",
    "FeedForward",
    "MultiHeadAttention",
    "classify_binary_sentiment",
    "corrupt_tokens",
    "generate",
    "masked_token_loss",
    "score",
    "softmax_with_temperature",
    "target_loss",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
