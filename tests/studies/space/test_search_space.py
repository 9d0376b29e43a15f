"""The search space: W&B's dialect, strict names, and what a sampler sees of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from budgetsweep.config import parse_yaml
from budgetsweep.constraint import Admitted, Limits, Rejected, admit
from budgetsweep.errors import ConfigError, Reason
from model.flops import Convention
from studies.space.defaults import default_space, first_proposal
from studies.space.search_space import Parameter, SearchSpace, space_from_dict
from trainer.config import ARCHITECTURES, Architecture

BASE = {"tokenizer_encoding": "bytes", "data": {"source": "demo"}}


def space(**changes: Any) -> SearchSpace:
    parameters: dict[str, Any] = {
        "n_embd": {"min": 16, "max": 64, "step": 16},
        "n_layer": 1,
        "head_dim": {"values": [8, 16]},
        "seq_len": [16, 32, 64],
        "batch_size": {"value": 4},
        "max_lr": {"min": 1e-3, "max": 1e-1, "distribution": "log_uniform_values"},
    }
    parameters.update(changes)
    parameters = {name: value for name, value in parameters.items() if value != "absent"}
    return space_from_dict({"parameters": parameters}, "space.yaml")


def test_a_wandb_sweep_file_is_understood() -> None:
    text = """
    program: train.py
    method: bayes
    metric: {name: val_loss, goal: minimize}
    parameters:
      model_config.n_embd: {min: 32, max: 128, q: 32, distribution: int_uniform}
      n_layer: {values: [2, 4, 8]}
      n_head: {value: 2}
      seq_len: {value: 64}
      batch_size: {min: 4, max: 64, distribution: int_log_uniform}
      max_lr: {distribution: log_uniform_values, min: 1e-4, max: 1e-2}
      p_dropout: {distribution: uniform, min: 0, max: 0.2}
      num_training_steps: {value: fill}
    """
    found = space_from_dict(parse_yaml(text, "w.yaml"), "w.yaml")
    kinds = found.distributions()
    assert found.method == "bayes"
    assert kinds == {
        "n_embd": IntDistribution(32, 128, step=32),
        "n_layer": IntDistribution(0, 2),
        "batch_size": IntDistribution(4, 64, log=True),
        "max_lr": FloatDistribution(1e-4, 1e-2, log=True),
        "p_dropout": FloatDistribution(0.0, 0.2),
    }
    assert found.decode({"n_layer": 2}) == {"n_layer": 8}


PAIRS = {
    "architecture": "encoder-decoder", "n_layer": "absent", "n_encoder_layer": [1, 2],
    "n_decoder_layer": 1, "source_len": [8, 24],
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"n_emb": 3}, "unknown parameter 'n_emb'; did you mean 'n_embd'?"),
        ({"max_lr": {"min": 1e-3}}, "a range needs both min and max"),
        ({"max_lr": {"min": 1e-1, "max": 1e-3}}, "is above max"),
        ({"max_lr": {"min": 0, "max": 1, "distribution": "log_uniform_values"}}, "min > 0"),
        ({"max_lr": {"min": -7, "max": -2, "distribution": "log_uniform"}}, "log_uniform_values"),
        ({"max_lr": {"min": 1, "max": 2, "distribution": "normal"}}, "unknown distribution"),
        ({"max_lr": {"value": 1, "values": [1]}}, "expected one of"),
        ({"max_lr": {}}, "expected one of"),
        ({"max_lr": {"values": []}}, "the list is empty"),
        ({"max_lr": {"values": [1, 1]}}, "a value is given twice"),
        ({"max_lr": {"value": 1, "step": 1}}, "step goes with min and max"),
        ({"max_lr": {"mim": 1, "max": 2}}, "did you mean 'min'?"),
        ({"n_embd": {"min": 1.5, "max": 3, "distribution": "int_uniform"}}, "whole min"),
        ({"n_head": 2}, "give head_dim or n_head, not both"),
        ({"head_dim": "absent"}, "parameters lacks head_dim"),
        ({"max_lr": "absent"}, "parameters lacks max_lr"),
        ({"min_lr": 1e-4, "min_lr_ratio": 0.1}, "give min_lr or min_lr_ratio"),
        ({"budget_flops": 1e12}, "unknown parameter 'budget_flops'"),
        ({"architecture": ["decoder", "encoder"]}, "losses of different objectives"),
        ({"architecture": "decodr"}, "expected one value, decoder, encoder, encoder-decoder"),
        ({**PAIRS, "source_len": "absent"}, "parameters lacks source_len"),
        ({"n_layer": "absent"}, "parameters lacks n_layer"),
    ],
)
def test_each_mistake_is_one_line_that_names_it(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        space(**changes)
    assert words in str(caught.value)
    assert str(caught.value).startswith("space.yaml: ")
    assert "\n" not in str(caught.value)


def test_other_goals_are_refused() -> None:
    for metric in ({"name": "accuracy"}, {"name": "val_loss", "goal": "maximize"}, "val_loss"):
        with pytest.raises(ConfigError, match="minimises val_loss"):
            space_from_dict({"metric": metric, "parameters": {}}, "s")


def test_the_saved_form_reads_back_equal() -> None:
    original = space(weight_decay={"values": [0.0, 0.1]}, p_dropout={"min": 0.0, "max": 0.1})
    assert space_from_dict(original.to_dict(), "t") == original


def test_random_proposals_stay_inside_and_reach_everything() -> None:
    rng = np.random.default_rng(0)
    drawn = [space().random_settings(rng) for _ in range(400)]
    assert {d["n_embd"] for d in drawn} == {16, 32, 48, 64}
    assert {d["seq_len"] for d in drawn} == {16, 32, 64}
    assert {d["head_dim"] for d in drawn} == {8, 16}
    rates = np.array([d["max_lr"] for d in drawn], dtype=float)
    assert rates.min() >= 1e-3
    assert rates.max() < 1e-1
    assert abs(np.mean(np.log10(rates)) + 2) < 0.1  # uniform in the logarithm: mean 1e-2


@given(
    st.sampled_from(
        [
            Parameter(min=3, max=40, step=5),
            Parameter(min=1, max=1000, distribution="int_log_uniform"),
            Parameter(min=0.1, max=0.9, step=0.2),
            Parameter(values=(1, 4, 16)),
            Parameter(values=("a", "b")),
            Parameter(min=2, max=2),
        ]
    ),
    st.floats(0, 1, exclude_max=True),
)
def test_every_quantile_is_a_value_that_optuna_accepts(parameter: Parameter, q: float) -> None:
    distribution = parameter.distribution_for_optuna()
    assert distribution is not None
    setting = parameter.setting_at(q)
    drawn = parameter.encode(setting)
    assert distribution._contains(distribution.to_internal_repr(drawn))
    assert parameter.decode(drawn) == setting
    if parameter.count() is not None and not parameter.is_log:
        assert any(setting == pytest.approx(v) if isinstance(v, float) else setting == v
                   for v in parameter.all_values())  # fmt: skip


def test_lists_of_numbers_are_ordered_words_are_not() -> None:
    assert space().distributions()["seq_len"] == IntDistribution(0, 2)
    assert isinstance(Parameter(values=("x", "y", "z")).distribution_for_optuna(),
                      CategoricalDistribution)  # fmt: skip
    assert isinstance(Parameter(values=(4, 1, 2)).distribution_for_optuna(),
                      CategoricalDistribution)  # fmt: skip


def test_size_counts_every_combination() -> None:
    assert space().size() is None
    assert space(max_lr=[1e-3, 1e-2]).size() == 4 * 2 * 3 * 2


def test_head_dim_becomes_heads_and_positions_follow_the_sequence() -> None:
    settings = {"n_embd": 64, "head_dim": 16, "seq_len": 32, "max_lr": 0.01}
    answer = admit(space().run_data(settings, BASE), Limits(10**12))
    assert isinstance(answer, Admitted)
    assert answer.config.model.n_head == 4
    assert answer.config.model.n_positions == 32
    assert answer.config.model.n_vocab == 257


def test_a_head_width_that_does_not_divide_is_an_invalid_shape() -> None:
    settings = {"n_embd": 16, "head_dim": 12, "seq_len": 32, "max_lr": 0.01}
    answer = admit(space(head_dim=[12, 16]).run_data(settings, BASE), Limits(10**12))
    assert isinstance(answer, Rejected)
    assert answer.reason is Reason.INVALID_SHAPE


@given(
    st.floats(10.5, 18),
    st.sampled_from([257, 50257]),
    st.sampled_from(Convention),
    st.sampled_from(ARCHITECTURES),
)
def test_the_built_in_space_fits_every_budget(
    exponent: float, n_vocab: int, convention: Convention, architecture: Architecture
) -> None:
    budget = int(10**exponent)
    base = {
        "tokenizer_encoding": "bytes" if n_vocab == 257 else "gpt2", "data": {"source": "x.csv"},
    }  # fmt: skip
    try:
        found = default_space(budget, n_vocab, convention, architecture)
    except ConfigError:
        assert budget < 10**12  # too small for 50k token ids: refused with advice
        return
    assert found.architecture == architecture
    first = first_proposal(found, budget, n_vocab, convention)
    assert set(first) == set(found.distributions())
    assert found.decode(found.encode(first)) == first
    answer = admit(found.run_data(first, base), Limits(budget, convention))
    assert isinstance(answer, Admitted), answer
    assert answer.config.model.n_vocab == n_vocab + (architecture == "encoder")
    rng = np.random.default_rng(0)
    answers = [
        admit(found.run_data(found.random_settings(rng), base), Limits(budget, convention))
        for _ in range(20)
    ]
    assert all(isinstance(answer, Admitted) for answer in answers)
    assert space_from_dict(found.to_dict(), "t") == found


def test_the_first_proposal_fits_a_space_of_ones_own() -> None:
    own = space(n_embd={"values": [24, 40]}, n_head={"values": [2, 4]}, head_dim="absent",
                weight_decay={"min": 0.2, "max": 0.5}, autocast=["off", "bf16"])  # fmt: skip
    first = first_proposal(own, 10**12, 257, "nanogpt")
    assert set(first) == set(own.distributions())
    assert first["n_embd"] == 40
    assert first["weight_decay"] == pytest.approx(0.2)
    own.encode(first)


def test_an_encoder_decoder_has_lengths_and_layers_of_both_sides() -> None:
    found = space(**PAIRS)
    assert found.architecture == "encoder-decoder"
    assert space_from_dict(found.to_dict(), "again") == found
    settings = {"n_embd": 32, "head_dim": 16, "seq_len": 16, "source_len": 24}
    run = found.run_data({**settings, "n_encoder_layer": 2, "max_lr": 0.01}, BASE)
    assert run["model_config"] == {
        "n_embd": 32, "n_head": 2, "n_source_positions": 24, "n_target_positions": 16,
        "n_encoder_layer": 2, "n_decoder_layer": 1,
    }  # fmt: skip
    answer = admit(run, Limits(10**10))
    assert isinstance(answer, Admitted)
    assert answer.config.architecture == "encoder-decoder"
