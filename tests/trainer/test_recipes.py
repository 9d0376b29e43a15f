"""Recipes: what they fill in, what they leave alone, and that a saved run is the same run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from budgetsweep.config import dump_yaml, load_yaml, parse, parse_yaml
from budgetsweep.errors import ConfigError
from tests.support.comparing import ALL_OPTIONS
from trainer.checkpoints.checkpoint import run_hash
from trainer.config import RunConfig
from trainer.recipes import MODEL_OPTIONS, RECIPES, RUN_OPTIONS

ROOT = Path(__file__).parents[2]
SIZES = {"n_embd": 16, "n_head": 2, "n_positions": 16, "n_layer": 2}
MINIMAL: dict[str, Any] = {"batch_size": 4, "seq_len": 16, "max_lr": 0.01, "num_training_steps": 9}


def read(shape: dict[str, Any] | None = None, **changes: Any) -> RunConfig:
    """A run of GPT-2's tokenizer, through YAML as a user's file is."""
    data = {"model_config": SIZES | (shape or {}), **MINIMAL, **changes}
    return parse(RunConfig, parse_yaml(dump_yaml(data), "run.yaml"), "run.yaml")


def refusal(shape: dict[str, Any] | None = None, **changes: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        read(shape, **changes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_modern_sets_the_decoder_and_its_training() -> None:
    config = read(recipe="modern")
    chosen = ("positions", "head_bias")
    assert config.model.options() == {name: ALL_OPTIONS[name] for name in chosen}
    assert (config.model.norm, config.model.bias) == ("layer", True)
    assert config.model.p_dropout == 0.0
    assert config.model.sizes() == SIZES | {"n_vocab": 50257, "p_dropout": 0.0}
    assert (config.optimizer, config.schedule) == ("muon", "linear")
    assert (config.head_samples, config.logits_per_token) == (1024, 1025)
    assert config.final_lr == 0.0
    assert config.recipe == "modern"


def test_without_a_recipe_a_run_is_gpt2s() -> None:
    config = read()
    assert config == read(recipe="gpt2")
    assert config.model.options() == {}
    assert (config.optimizer, config.schedule, config.logits_per_token) == ("adamw", "cosine", None)
    assert config.final_lr == pytest.approx(0.001)


def test_the_courses_file_stays_what_it_is() -> None:
    data = load_yaml(ROOT / "examples" / "configs" / "GPT-tiny.yaml")
    config = parse(RunConfig, data, "GPT-tiny.yaml")
    assert config.flops_per_step("nanogpt") * config.steps == 81_306_058_752_000
    assert config.model.options() == {}
    saved = config.to_dict()
    new = {"recipe", "schedule", "cooldown_fraction", "optimizer", "head_samples"}
    assert not new & saved.keys()
    assert saved["model_config"] == data["model_config"] | {"n_vocab": 50257, "p_dropout": 0.1}


EXPLICIT: list[tuple[str, Any]] = [
    ("head_samples", 77), ("head_samples", None), ("optimizer", "adamw"), ("schedule", "cosine"),
    ("schedule", "wsd"), ("min_lr_ratio", 0.3), ("min_lr_ratio", None), ("min_lr", 0.002),
]  # fmt: skip
PLAIN: list[tuple[str, Any]] = [
    ("positions", "learned"), ("norm", "rms"), ("qk_norm", True), ("activation", "relu2"),
    ("bias", False), ("zero_init", True), ("head_bias", "none"), ("p_dropout", 0.2),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), EXPLICIT)
def test_what_a_run_says_wins_over_its_recipe(name: str, value: object) -> None:
    config, silent = read(recipe="modern", **{name: value}), read(recipe="modern")
    assert getattr(config, name) == value
    assert config != silent
    others = RUN_OPTIONS["modern"].keys() - {name, "min_lr_ratio"}
    assert all(getattr(config, other) == getattr(silent, other) for other in others)
    assert config.model == silent.model
    assert config.final_lr == {
        ("min_lr_ratio", 0.3): 0.003, ("min_lr_ratio", None): 0.001, ("min_lr", 0.002): 0.002,
    }.get((name, value), 0.0)  # fmt: skip


@pytest.mark.parametrize(("name", "value"), PLAIN)
def test_what_a_shape_says_wins_over_its_recipe(name: str, value: object) -> None:
    shape = read({name: value}, recipe="modern").model
    silent = read(recipe="modern").model
    assert getattr(shape, name) == value
    assert shape.model_copy(update={name: getattr(silent, name)}) == silent


@given(
    recipe=st.sampled_from(RECIPES),
    given_run=st.sets(st.sampled_from(range(len(EXPLICIT)))),
    given_shape=st.sets(st.sampled_from(range(len(PLAIN)))),
)
def test_a_saved_run_is_the_same_run(
    recipe: str, given_run: set[int], given_shape: set[int]
) -> None:
    changes = dict(EXPLICIT[i] for i in sorted(given_run))
    if changes.get("min_lr") is not None and changes.get("min_lr_ratio") is not None:
        del changes["min_lr"]
    config = read(dict(PLAIN[i] for i in given_shape), recipe=recipe, **changes)
    again = parse(RunConfig, parse_yaml(dump_yaml(config.to_dict()), "t"), "t")
    assert again == config
    assert again.to_dict() == config.to_dict()
    assert run_hash(again) == run_hash(config)
    assert again.with_changes(seed=5).with_changes(seed=config.seed) == config


def test_other_settings_are_another_run() -> None:
    hashes = [run_hash(read(recipe="modern"))]
    hashes += [run_hash(read(recipe="modern", **{name: value})) for name, value in EXPLICIT]
    hashes += [run_hash(read({name: value}, recipe="modern")) for name, value in PLAIN]
    hashes += [run_hash(read({name: value})) for name, value in ALL_OPTIONS.items()]
    hashes += [run_hash(read()), run_hash(read(head_samples=10))]
    assert len(set(hashes)) == len(hashes)


def test_a_recipe_names_settings_that_exist() -> None:
    for recipe in RECIPES:
        assert RUN_OPTIONS[recipe].keys() <= RunConfig.model_fields.keys()
        assert MODEL_OPTIONS[recipe].keys() <= {*ALL_OPTIONS, "p_dropout"}
    assert "recipe = 'moderm'" in refusal(recipe="moderm")


PAIR: dict[str, Any] = {
    "architecture": "encoder-decoder", "source_len": 8, "seq_len": 8,
    "model_config": {
        "n_embd": 16, "n_head": 2, "n_source_positions": 8, "n_target_positions": 8,
        "n_encoder_layer": 1, "n_decoder_layer": 1,
    },
}  # fmt: skip


@pytest.mark.parametrize("other", [{"architecture": "encoder"}, PAIR], ids=["encoder", "pair"])
def test_only_a_decoder_has_recipes_and_a_sampled_head(other: dict[str, Any]) -> None:
    read(**other)
    assert "recipe: modern: only a decoder can have it" in refusal(**other, recipe="modern")
    assert "head_samples: only a decoder can have it" in refusal(**other, head_samples=10)
    assert "optimizer: muon: only a decoder can have it" in refusal(**other, optimizer="muon")
    assert read(**other, schedule="linear").schedule == "linear"


@pytest.mark.parametrize(("name", "value"), ALL_OPTIONS.items())
def test_only_a_decoder_has_options(name: str, value: object) -> None:
    assert f"{name}: only a decoder can have it" in refusal({name: value}, architecture="encoder")
    pair = {**PAIR, "model_config": {**PAIR["model_config"], name: value}}
    assert "the encoder-decoder has the sizes" in refusal(**pair)


def test_a_sample_is_smaller_than_the_vocabulary() -> None:
    assert read(head_samples=50256).logits_per_token == 50257
    for n in (50257, 60000):
        message = refusal(head_samples=n)
        assert f"head_samples = {n} is not less than the 50257 entries" in message
        assert "head_samples: null for the full softmax" in message
    # A recipe does not sample a small vocabulary, and who asks for too much is refused.
    assert read(recipe="modern", tokenizer_encoding="bytes").logits_per_token is None
    assert "head_samples = 1024 is not less than the 257 entries" in refusal(
        recipe="modern", tokenizer_encoding="bytes", head_samples=1024
    )
    assert "head_samples = 0" in refusal(head_samples=0)


def test_only_wsd_has_a_cooldown() -> None:
    assert read(schedule="wsd", cooldown_fraction=0.3).cooldown_fraction == 0.3
    for changes in ({}, {"schedule": "linear"}, {"recipe": "modern"}):
        message = refusal(cooldown_fraction=0.3, **changes)
        assert "cooldown_fraction: only schedule: wsd has a cooldown" in message


@pytest.mark.parametrize("convention", ["nanogpt", "matmul", "mac"])
def test_a_step_is_charged_the_rows_of_its_head(convention: Any) -> None:
    whole = read(recipe="modern", head_samples=None).flops_per_step(convention)
    sampled = read(recipe="modern").flops_per_step(convention)
    per_row = {"nanogpt": 6, "matmul": 6, "mac": 3}[convention] * 16 * 4 * 16
    assert whole - sampled == (50257 - 1025) * per_row


@pytest.mark.parametrize("convention", ["nanogpt", "matmul", "mac"])
def test_muon_is_charged_once_a_step(convention: Any) -> None:
    for batch_size in (1, 4):
        muon = read(optimizer="muon", batch_size=batch_size)
        plain = read(batch_size=batch_size)
        extra = muon.flops_per_step(convention) - plain.flops_per_step(convention)
        assert extra == muon.optimizer_kind.flops_per_step(muon.model, convention) > 0
