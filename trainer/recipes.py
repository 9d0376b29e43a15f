"""Named sets of model and training options. No torch."""

from __future__ import annotations

from typing import Any, Literal, get_args

Recipe = Literal["gpt2", "modern"]
RECIPES: tuple[Recipe, ...] = get_args(Recipe)

MODEL_OPTIONS: dict[Recipe, dict[str, Any]] = {
    "gpt2": {},
    "modern": {
        "positions": "rope",
        "norm": "layer",
        "bias": True,
        "head_bias": "unigram",
        "p_dropout": 0.0,
    },
}
"""Keys of `model_config` that a recipe sets where the configuration does not."""

RUN_OPTIONS: dict[Recipe, dict[str, Any]] = {
    "gpt2": {},
    "modern": {
        "head_samples": 1024,
        "optimizer": "muon",
        "schedule": "linear",
        "min_lr_ratio": 0.0,
    },
}
"""Keys of a run that a recipe sets where the configuration does not."""

LARGE_VOCABULARY = 16_384
"""From so many ids on a recipe samples the softmax: below, logits are a small part of a step."""


def expanded(
    recipe: Recipe, run: dict[str, Any], model: dict[str, Any], n_vocab: int
) -> dict[str, Any]:
    """A run's plain data with what its recipe sets and it does not say, under `model_config`.

    `model` is the plain data of the model's shape, which `run` holds under either name.
    """
    options = dict(RUN_OPTIONS[recipe])
    if "min_lr" in run:  # another way of saying min_lr_ratio
        options.pop("min_lr_ratio", None)
    if n_vocab < LARGE_VOCABULARY:
        options.pop("head_samples", None)
    key = "model_config" if "model_config" in run else "model"
    return {**options, **run, key: {**MODEL_OPTIONS[recipe], **model}}
