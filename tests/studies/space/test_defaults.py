"""The built-in space: its first proposal is admitted, and recipes change what they should."""

from typing import Any

import pytest

from budgetsweep.constraint import Admitted, Limits, admit
from budgetsweep.errors import ConfigError
from studies.settings import SearchSettings
from studies.space.defaults import default_space, first_proposal
from studies.space.sample import EVAL_SHARE, eval_cost, sample_space, wanted_validation
from trainer.config import TOKENIZER_VOCABULARIES, RunConfig

BASE: dict[str, Any] = {"device": "cpu", "seed": 0, "data": {"source": "demo"}}


def admitted(budget: int, tokenizer: str, recipe: Any) -> RunConfig:
    n_vocab = TOKENIZER_VOCABULARIES[tokenizer]
    space = default_space(budget, n_vocab, "nanogpt", recipe=recipe)
    settings = first_proposal(space, budget, n_vocab, "nanogpt")
    answer = admit(
        space.run_data(settings, {**BASE, "tokenizer_encoding": tokenizer}), Limits(budget)
    )
    assert isinstance(answer, Admitted), answer
    assert answer.charge_flops <= budget
    return answer.config


@pytest.mark.parametrize("tokenizer", ["gpt2", "bytes"])
def test_the_first_proposal_is_of_the_recipe(tokenizer: str) -> None:
    """That it is admitted at every budget: `test_search_space`."""
    config = admitted(10**13, tokenizer, "modern")
    assert (config.recipe, config.optimizer, config.final_lr) == ("modern", "muon", 0.0)
    assert (config.head_samples is None) == (tokenizer == "bytes")


def test_a_cheaper_head_buys_a_larger_body_and_more_tokens() -> None:
    modern = admitted(10**13, "gpt2", "modern")
    plain = admitted(10**13, "gpt2", "gpt2")
    assert modern.model.n_embd > plain.model.n_embd
    assert modern.total_tokens > 2 * plain.total_tokens


def test_a_search_trains_the_modern_decoder_unless_it_is_told() -> None:
    def recipe_of(*overrides: str, space: Any = None) -> Any:
        settings = SearchSettings(budget_flops=10**13, overrides=overrides, space=space)
        parameter = settings.resolved_space().parameters.get("recipe")
        return None if parameter is None else parameter.value

    assert recipe_of() == "modern"
    assert recipe_of("recipe=gpt2") == "gpt2"
    assert recipe_of("architecture=encoder") is None
    plain = default_space(10**13, 50257, "nanogpt", recipe="gpt2")
    assert recipe_of(space=plain) == "modern"
    with pytest.raises(ConfigError, match="--set recipe=moderm: expected one of gpt2, modern"):
        recipe_of("recipe=moderm")


def test_validation_is_charged_with_the_whole_head() -> None:
    modern = admitted(10**13, "gpt2", "modern")
    whole = modern.with_changes(head_samples=None)
    assert eval_cost(whole) == pytest.approx(1 / 3)
    body = modern.flops_per_step("matmul") - modern.optimizer_flops_per_step("matmul")
    assert eval_cost(modern) > whole.flops_per_step("matmul") / body / 3 * 0.8 > 1
    space = default_space(10**13, 50257, "nanogpt")
    base = {**BASE, "tokenizer_encoding": "gpt2"}
    sample = sample_space(space, base, Limits(10**13, "nanogpt"), 64, 0)
    tokens = wanted_validation(sample, pairs=False)
    for each in sample.admitted:
        config = each.config
        if tokens > 8 * 256:  # not the least that the constraint demands
            spent = tokens * config.num_evals * eval_cost(config)
            assert spent <= EVAL_SHARE * config.total_tokens * 1.001


@pytest.mark.parametrize(
    ("budget", "scale", "first", "counts"),
    [
        (10**12, None, 512, (256, 512, 1024)),
        (10**13, None, 1024, (512, 1024, 2048)),
        (10**14, None, 2048, (1024, 2048, 4096)),
        (10**13, 100.0, 1024, (512, 1024, 2048, 4096)),
        (10**20, None, 8192, (4096, 8192, 16384)),
    ],
)
def test_larger_budgets_sample_more_of_the_head(
    budget: int, scale: float | None, first: int, counts: tuple[int, ...]
) -> None:
    space = default_space(budget, 50257, "nanogpt", for_scale=scale)
    assert space.parameters["head_samples"].all_values() == list(counts)
    assert first_proposal(space, budget, 50257, "nanogpt")["head_samples"] == first
    small = default_space(budget, 16384, "nanogpt", for_scale=scale)
    assert max(small.parameters["head_samples"].all_values()) < 16384
