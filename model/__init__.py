"""The from-scratch transformer: shapes and FLOPs without torch; layers and generation with it.

The layers are loaded when they are first asked for, so that `import model.config` stays free of
torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from model.attention import MultiHeadAttention
    from model.decoder import DecoderLM
    from model.generation import generate, score, softmax_with_temperature
    from model.layers import DecoderBlock, FeedForward

_HOME = {
    "DecoderBlock": "model.layers",
    "DecoderLM": "model.decoder",
    "FeedForward": "model.layers",
    "MultiHeadAttention": "model.attention",
    "generate": "model.generation",
    "score": "model.generation",
    "softmax_with_temperature": "model.generation",
}

__all__ = [
    "DecoderBlock",
    "DecoderLM",
    "FeedForward",
    "MultiHeadAttention",
    "generate",
    "score",
    "softmax_with_temperature",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
