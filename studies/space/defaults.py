"""The search space and the first proposal that fit a budget, when the user names none.

The ranges follow from the budget alone:

* *Size.* The best model at C training FLOPs has about N = sqrt(C / (6 · r)) parameters, r tokens a
  parameter. Published isoFLOP runs at 1e15 to 1e17 with a 50k vocabulary (Porian et al. 2024, N
  with embeddings and head) have their optimum at 14 to 23; r = 14 here. N are
  the active parameters, and our own runs at 3e12 agree (docs/experiments.md).
  Depth is width / 32.
* *Batch.* Tokens per step B = 0.58 · D^0.571 (StepLaw, Li et al. 2025), D the training tokens.
* *Learning rate.* 1e-2 first, between what StepLaw and the course used; the modern recipe was best
  at 1.2e-2 among those tried at 3e12; at 1e12 half of that lost 0.06 nats (one seed) and twice
  gained 0.01, at 1e13 twice lost 0.01 (three seeds each; docs/experiments.md).
"""

from __future__ import annotations

import math
from typing import Any

from budgetsweep.errors import ConfigError
from model.config import ModelConfig
from model.flops import Convention, count_active_params, flops_per_token
from studies.space.search_space import SearchSpace, Value, space_from_dict
from trainer.config import Architecture
from trainer.recipes import LARGE_VOCABULARY, Recipe

DEFAULT_RECIPE: Recipe = "modern"
"""What a search trains where nothing is said."""
TOKENS_PER_PARAM = 14.0
WIDTHS_PER_LAYER = 32
SEQ_LENS = (32, 64, 128, 256)
SOURCE_LENS = (64, 128)
HEAD_SAMPLES_AT = (1e13, 1024)
"""FLOPs, and the sampled ids of the head that suit them: 650 were best at 1e12, 970 at 1e13 and
1,930 at 1e14 (one seed), by parabolas through three counts each (docs/experiments.md)."""
HEAD_SAMPLES_EXPONENT = 0.25
"""Of the FLOPs, by these; beyond 1e14 an *assumption*."""
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


def default_space(
    budget_flops: int,
    n_vocab: int,
    convention: Convention,
    architecture: Architecture = "decoder",
    recipe: Recipe = DEFAULT_RECIPE,
    for_scale: float | None = None,
) -> SearchSpace:
    """The built-in search space for a budget and a vocabulary.

    A recipe is the decoder's alone. With `for_scale` sizes go up to those that suit so many times
    the budget.

    Sizes are the decoder's for every architecture; an encoder-decoder divides the layers between
    its sides (*assumption*).

    Raises:
        ConfigError: the budget is too small for any sensible model.
    """
    modern = architecture == "decoder" and recipe == "modern"
    width, tokens = _centre(budget_flops, n_vocab, convention, modern)
    step = _width_step(width)
    low = max(step, width // 2 // step * step)
    high = max(2 * step, 2 * width)
    deepest = width
    if for_scale is not None:
        deepest, _ = _centre(int(for_scale * budget_flops), n_vocab, convention, modern)
        high = max(high, deepest // step * step)
    batch = _batch_index(tokens)
    # The largest batch of the longest sequences must leave the widest model some steps.
    largest = max(2, tokens // (16 * max(SEQ_LENS)))
    sizes = [size for size in BATCH_SIZES[max(0, batch - 2) : batch + 3] if size <= largest]
    sizes = sizes if len(sizes) > 1 else list(BATCH_SIZES[:2])
    depth = max(3, 2 * _depth(width), _depth(deepest))
    layers: dict[str, Any] = {"n_layer": {"min": 1, "max": depth}}
    if architecture == "encoder-decoder":
        side = {"min": 1, "max": max(2, depth // 2)}
        layers = {"n_encoder_layer": side, "n_decoder_layer": side}
        layers["source_len"] = {"values": list(SOURCE_LENS)}
    if architecture != "decoder":
        layers["architecture"] = {"value": architecture}
    parameters: dict[str, Any] = {
        "n_embd": {"min": low, "max": high, "step": step},
        **layers,
        "head_dim": {"values": [step // 2, step]},
        "seq_len": {"values": list(SEQ_LENS)},
        "batch_size": {"values": sizes},
        "grad_accumulation_steps": {"value": 1},
        "num_training_steps": {"value": "fill"},
        "max_lr": {"min": 1e-3, "max": 3e-2, "distribution": "log_uniform_values"},
        "min_lr_ratio": {"values": [0.0, 0.1]},
        "warmup_fraction": {"min": 0.01, "max": 0.1, "distribution": "log_uniform_values"},
        "weight_decay": {"values": [0.0, 0.01, 0.1]},
        "beta2": {"values": [0.95, 0.98, 0.99]},
        "p_dropout": {"value": 0.0},
    }
    if modern:
        parameters = {"recipe": {"value": recipe}, **parameters}
        parameters["max_lr"]["min"] = 3e-3
        del parameters["min_lr_ratio"]  # the recipe decays to zero
        if n_vocab >= LARGE_VOCABULARY:
            middle = head_samples_at(budget_flops, n_vocab)
            largest = head_samples_at(int(budget_flops * (for_scale or 1)), n_vocab)
            counts = [middle // 2]
            while counts[-1] < max(2 * middle, largest) and 2 * counts[-1] < n_vocab:
                counts.append(2 * counts[-1])
            parameters["head_samples"] = {"values": counts}
    return space_from_dict({"parameters": parameters}, "default search space")


def first_proposal(
    space: SearchSpace, budget_flops: int, n_vocab: int, convention: Convention
) -> dict[str, Value]:
    """A known-good proposal inside `space`: each value the nearest that the space allows."""
    recipe = space.parameters.get("recipe")
    modern = recipe is not None and recipe.value == "modern"
    try:
        width, tokens = _centre(budget_flops, n_vocab, convention, modern)
        batch = BATCH_SIZES[_batch_index(tokens)]
    except ConfigError:  # the user's own space may make sense where the default has none
        width, batch = 16, 8
    wanted: dict[str, Value] = {
        "n_embd": width,
        "n_layer": _depth(width),
        "n_encoder_layer": max(1, _depth(width) // 2),
        "n_decoder_layer": max(1, _depth(width) // 2),
        "source_len": _SEQ_LEN,
        "n_source_positions": _SEQ_LEN,
        "n_target_positions": _SEQ_LEN,
        "head_dim": _width_step(width),
        "n_head": max(1, width // _width_step(width)),
        "n_positions": _SEQ_LEN,
        "seq_len": _SEQ_LEN,
        "batch_size": batch,
        "grad_accumulation_steps": 1,
        "head_samples": head_samples_at(budget_flops, n_vocab),
        "max_lr": 1.2e-2 if modern else 1e-2,
        "min_lr": 1e-3,
        "min_lr_ratio": 0.1,
        "warmup_fraction": 0.05,
        "num_warmup_steps": 10,
        "weight_decay": 0.1,
        "beta1": 0.9,
        "beta2": 0.95,
        "p_dropout": 0.0,
    }
    proposal: dict[str, Value] = {}
    for name, parameter in space.parameters.items():
        if not parameter.is_fixed:
            proposal[name] = _nearest(parameter, wanted.get(name))
    return proposal


_SEQ_LEN = 128


def head_samples_at(budget_flops: int, n_vocab: int) -> int:
    """Sampled-softmax entries that suit a budget: a power of two, at most a quarter of all V."""
    flops, samples = HEAD_SAMPLES_AT
    wanted = samples * (budget_flops / flops) ** HEAD_SAMPLES_EXPONENT
    most = math.log2(max(n_vocab / 4, 2))
    return int(2 ** min(max(round(math.log2(wanted)), 7), math.floor(most)))


def _nearest(parameter: Any, wanted: Value) -> Value:
    """The allowed setting nearest to `wanted`; the middle one when nothing is wanted."""
    if not isinstance(wanted, int | float):
        return parameter.setting_at(0.5)
    if parameter.count() is None:
        return min(max(float(wanted), float(parameter.min)), float(parameter.max))
    numbers = [v for v in parameter.all_values() if isinstance(v, int | float)]
    if not numbers:
        return parameter.setting_at(0.5)
    return min(numbers, key=lambda value: abs(value - wanted))


def _depth(width: int) -> int:
    return max(1, round(width / WIDTHS_PER_LAYER))


def _width_step(width: int) -> int:
    return 16 if width < 128 else 32 if width < 512 else 64


def _centre(
    budget_flops: int, n_vocab: int, convention: Convention, modern: bool
) -> tuple[int, int]:
    """Width of the model that the budget suits best, and the tokens it then affords."""
    logits = None
    if modern and n_vocab >= LARGE_VOCABULARY:
        logits = head_samples_at(budget_flops, n_vocab) + 1

    def params(width: int) -> int:
        return count_active_params(_shape(width, n_vocab), logits)

    target = (budget_flops / (6 * TOKENS_PER_PARAM)) ** 0.5
    width = 16
    while width < 4096 and params(width) < target:
        width += _width_step(width)
    smaller = width - _width_step(width - 1)
    if smaller >= 16 and target - params(smaller) < params(width) - target:
        width = smaller
    tokens = budget_flops // flops_per_token(_shape(width, n_vocab), _SEQ_LEN, convention, logits)
    if tokens < 10_000:
        fewer = " or a smaller vocabulary (--tokenizer bytes)" if n_vocab > 1000 else ""
        raise ConfigError(
            f"a budget of {budget_flops:.3g} training FLOPs buys {tokens:,} tokens for the "
            f"smallest model of {n_vocab:,} token ids; set a larger --budget "
            f"(1e13 suits a CPU, 1e15 a GPU){fewer}"
        )
    return width, tokens


def _shape(width: int, n_vocab: int) -> ModelConfig:
    return ModelConfig(
        n_vocab=n_vocab, n_embd=width, n_head=1, n_positions=_SEQ_LEN, n_layer=_depth(width)
    )


def _batch_index(tokens: int) -> int:
    """Index in `BATCH_SIZES` of the batch that StepLaw's tokens per step give."""
    wanted = 0.58 * tokens**0.571 / _SEQ_LEN
    nearest = min(BATCH_SIZES[2:-1], key=lambda size: abs(size - wanted))
    return BATCH_SIZES.index(nearest)
