"""Prompts that fit, the draw that is always the same, and two columns of the scores."""

from __future__ import annotations

import datasets
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from budgetsweep.errors import CheckpointError, ConfigError, DataError
from model.classification import classify_binary_sentiment, decide, decision_boundary
from model.decoder import DecoderLM
from model.generation.decoding import score
from tests.support.tiny_runs import tiny_config
from trainer.data.tokenizers import ByteTokenizer
from trainer.sentiment.classify import (
    TEMPLATE,
    WORDS,
    Prompts,
    make_prompts,
    parse_template,
    parse_words,
    score_words,
    word_tokens,
)
from trainer.sentiment.labelled import LabelledTexts, shuffled

ENCODING = ByteTokenizer()
TEXTS = ["good", "bad", "", "a {text} of {0} {braces", "long " * 9, "né", "x" * 10, "middle size"]
DATA = LabelledTexts(TEXTS, [1, 0, 0, 1, 0, 1, 1, 0], "made")


def prompts(template: str = "R: {text}. It is ", **changes: object) -> Prompts:
    settings = {"limit": None, "seed": 42, **changes}
    return make_prompts(DATA, template, ENCODING, 32, 257, **settings)  # type: ignore[arg-type]


def a_model(n_positions: int = 32) -> DecoderLM:
    torch.manual_seed(0)
    model = DecoderLM.from_config(tiny_config(shape={"n_positions": n_positions}).model)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model


def test_the_default_is_the_assignments() -> None:
    before, after = parse_template(TEMPLATE)
    assert before + "Nice." + after == "Here is a yelp review.\nNice.\nThis review is"
    assert parse_words("negative,positive", TEMPLATE) == WORDS == (" negative", " positive")


def test_braces_of_reviews_and_templates_mean_nothing() -> None:
    found = prompts("{a} {} {{ {text} }} ")
    assert found.texts[found.rows.index(2)] == "{a} {} {{  }} "
    short = make_prompts(DATA, "{text}:", ENCODING, 99, 257, limit=None, seed=0)
    assert short.texts[3] == "a {text} of {0} {braces:"


def test_a_typed_line_end_is_one() -> None:
    assert parse_template(r"a\n{text}\nb\t") == ("a\n", "\nb\\t")


@pytest.mark.parametrize("template", ["", "no place", "{text} and {text}", "{ text }", "{Text}"])
def test_a_template_has_one_place_for_the_review(template: str) -> None:
    with pytest.raises(ConfigError, match=r"--template: \{text\} occurs \d times; expected once"):
        parse_template(template)


@pytest.mark.parametrize(
    ("words", "template", "expected"),
    [
        ("bad, good", "{text} is", (" bad", " good")),
        (" bad ,  good", "{text} is", (" bad", " good")),
        ("n,p", "{text} is ", ("n", "p")),
        ("n,p", "{text}\n", ("n", "p")),
        ("n,p", "{text}", (" n", " p")),
        ("n,p", "is: {text}", (" n", " p")),
    ],
)
def test_a_word_has_one_space_before_it(
    words: str, template: str, expected: tuple[str, str]
) -> None:
    assert parse_words(words, template) == expected


@pytest.mark.parametrize("words", ["", ",", "bad", "bad,", "a,b,c", "good, good", "\udcff,a"])
def test_two_different_words_are_needed(words: str) -> None:
    with pytest.raises(ConfigError, match="--words"):
        parse_words(words, TEMPLATE)


def test_a_word_of_several_tokens_is_refused_with_its_tokens() -> None:
    assert word_tokens(ENCODING, ("n", "p"), 257) == [110, 112]
    with pytest.raises(ConfigError) as caught:
        word_tokens(ENCODING, WORDS, 257)
    message = str(caught.value)
    assert "' negative' is 9 tokens (' ', 'n', 'e', 'g', 'a', 't', ...), expected one" in message
    assert "--words n,p" in message
    with pytest.raises(ConfigError, match="'p' is token 112, but the model has ids 0 to 111"):
        word_tokens(ENCODING, ("n", "p"), 112)


def test_what_does_not_fit_is_dropped_and_counted() -> None:
    found = prompts()
    room = 32 - len("R: . It is ")
    fitting = [i for i, text in enumerate(TEXTS) if len(text.encode()) <= room]
    assert 4 not in fitting
    assert 3 not in fitting
    assert found.rows == fitting
    assert found.labels == [DATA.labels[i] for i in fitting]
    assert (found.n_drawn, found.n_dropped) == (8, 2)


def test_a_prompt_may_fill_all_positions() -> None:
    data = LabelledTexts(["x" * 10, "x" * 11], [0, 1], "made")
    found = make_prompts(data, "{text}ab", ENCODING, 12, 257, limit=None, seed=0)
    assert found.rows == [0]


def test_draw_then_drop_or_drop_then_draw() -> None:
    order = shuffled(8, 42)
    first = prompts(limit=4)
    assert (first.n_drawn, first.n_dropped) == (4, 4 - len(first.rows))
    assert first.rows == sorted(set(order[:4]) - {3, 4})
    fitting = prompts(limit=4, only_fitting=True)
    assert (fitting.n_drawn, fitting.n_dropped) == (8, 2)
    assert fitting.rows == sorted([i for i in order if i not in (3, 4)][:4])
    assert prompts(limit=100).rows == prompts().rows


def test_none_fits() -> None:
    with pytest.raises(DataError, match=r"made: none of 8 reviews fits: .* n_positions = 32"):
        prompts("{text}" + "!" * 40)


def test_another_tokenizer_is_refused() -> None:
    with pytest.raises(ConfigError, match="the tokenizer is another one than the model's"):
        make_prompts(DATA, "{text}", ENCODING, 32, 100, limit=None, seed=0)


def test_the_fixed_thousand_is_that_of_datasets_and_never_changes() -> None:
    table = datasets.Dataset.from_dict({"i": list(range(38_000))})
    assert shuffled(38_000, 42)[:1000] == table.shuffle(seed=42)[:1000]["i"]
    assert shuffled(38_000, 42)[:5] == PINNED
    assert sorted(shuffled(100, 7)) == list(range(100))


PINNED = [19962, 2820, 32556, 17227, 30994]


@given(st.integers(1, 5), st.booleans())
def test_two_columns_give_what_all_logits_give(batch_size: int, calibrate: bool) -> None:
    model, found = a_model(), prompts()
    seen: list[int] = []
    p = score_words(model, "cpu", ENCODING, found.texts, [110, 112], batch_size, seen.append)
    logits = score(model, "cpu", ENCODING, found.texts, batch_size)
    expected = classify_binary_sentiment(logits, [110, 112], calibrate)
    assert decide(p, decision_boundary(p, calibrate)) == expected
    two = logits[:, [110, 112]].double()
    assert torch.equal(p, two.softmax(dim=1)[:, 1])
    assert seen[-1] == len(found.texts)
    assert len(set(p.tolist())) == len(found.texts)  # or the order would not be tested


def test_the_mode_comes_back_and_dropout_is_off() -> None:
    model, texts = a_model().train(), prompts().texts
    first = score_words(model, "cpu", ENCODING, texts, [110, 112], 3)
    assert model.training
    assert torch.equal(first, score_words(model, "cpu", ENCODING, texts, [110, 112], 3))


def test_a_damaged_model_is_said() -> None:
    model = a_model()
    with torch.no_grad():
        model.ln.weight.fill_(torch.nan)
    with pytest.raises(CheckpointError, match="not finite"):
        score_words(model, "cpu", ENCODING, ["a"], [110, 112], 1)
