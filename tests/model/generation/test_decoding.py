"""Generation and scoring against the plain float64 reference, one prompt at a time."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import tiktoken
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from budgetsweep.errors import CheckpointError
from model import generate, score
from model.config import SamplingConfig
from model.decoder import DecoderLM
from model.generation.decoding import context_start, continue_texts
from model.kv_cache import KeyValueCache
from tests.support import reference_decoder
from tests.support.comparing import ALL_OPTIONS, EACH_AND_ALL

V, D, H, L = 23, 8, 2, 2
P = 9
CPU = torch.device("cpu")
PREFIXES = ["abcdefg", "", "k", "tuv", "abcdefghijklmnopq", "vvvvvvvv", "abcdefghi", "·a"]
"""Shorter than P, empty, longer than P, exactly P; `·` is the end-of-text token."""


class Letters:
    """The letters a to v are the ids 0 to 21; 22 is end-of-text."""

    eot_token = 22

    def encode(self, text: str) -> list[int]:
        return [22 if c == "·" else ord(c) - ord("a") for c in text]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join("·" if i == 22 else chr(ord("a") + i) for i in ids)


LETTERS = Letters()


def make(seed: int = 0, n_positions: int = P, p_dropout: float = 0.0, **options: Any) -> DecoderLM:
    """A float64 model, far from its initial values, whose greedy text does not run in circles."""
    torch.manual_seed(seed)
    model = DecoderLM(V, D, H, n_positions, L, p_dropout, **options).double()
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, std=1.5 if "position" in name else 0.6)
    if "ln.bias" in dict(model.named_parameters()):
        torch.nn.init.zeros_(model.ln.bias)  # or one token would be likely everywhere
    if model.head_bias is not None:
        model.head_bias.normal_(std=0.6)
    return model


def reference_logits(model: DecoderLM, ids: Sequence[int]) -> Tensor:
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    options = model.shape.options()
    with torch.no_grad():
        prompt = torch.tensor(ids)
        return reference_decoder.logits_of_prompt(tensors, prompt, H, L, options=options)[-1]


def reference_continuation(
    model: DecoderLM, prefix: str, n: int, choose: Callable[[int, Tensor], int]
) -> str:
    """The documented rule, as a person would follow it: one prompt, no padding, no cache."""
    window = (LETTERS.encode(prefix) or [LETTERS.eot_token])[-model.n_positions :]
    chosen = []
    for step in range(n):
        token = choose(step, reference_logits(model, window))
        chosen.append(token)
        if len(window) == model.n_positions:
            window = window[len(window) - model.n_positions // 2 :]
        window.append(token)
    return LETTERS.decode(chosen)


def greedy(step: int, logits: Tensor) -> int:
    return int(logits.argmax())


def drawn(temperature: float, seed: int, row: int, step: int, logits: Tensor) -> int:
    """Inverse of the cumulative distribution, written out."""
    p = reference_decoder.softmax(logits / temperature)
    u = np.random.default_rng((seed, row)).random(step + 1)[step]
    return next(i for i, total in enumerate(itertools.accumulate(p.tolist())) if total > u)


@pytest.mark.slow
@pytest.mark.parametrize(("seed", "options"), [(2, {}), (10, ALL_OPTIONS)], ids=["gpt2", "options"])
def test_greedy_continuations_equal_the_reference(seed: int, options: dict[str, Any]) -> None:
    model = make(seed, **options)
    n = 3 * P  # the window is full several times
    expected = [reference_continuation(model, prefix, n, greedy) for prefix in PREFIXES]
    assert len(set(expected)) == len(PREFIXES)  # the model does not say the same to everything
    assert len(set("".join(expected))) > 8
    for use_cache in (True, False):
        for batch_size in (1, 3, 8):
            ours = generate(model, CPU, LETTERS, PREFIXES, batch_size, n, use_cache=use_cache)
            assert ours == expected


def test_drawn_continuations_equal_the_reference() -> None:
    model = make(seed=4)
    n = 2 * P
    expected = [
        reference_continuation(model, prefix, n, functools.partial(drawn, 1.7, 5, row))
        for row, prefix in enumerate(PREFIXES)
    ]
    assert len(set("".join(expected))) > 10
    for use_cache in (True, False):
        ours = generate(
            model, CPU, LETTERS, PREFIXES, 3, n, temperature=1.7, seed=5, use_cache=use_cache
        )
        assert ours == expected


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(
    prefixes=st.lists(st.text("abcdefghijklmnopqrstuv·", max_size=14), min_size=1, max_size=6),
    batch_size=st.integers(1, 6),
    n_positions=st.integers(1, 11),
    temperature=st.sampled_from([0.0, 0.8, 3.0]),
    seed=st.integers(0, 2**32),
    options=st.sampled_from([{}, {"positions": "rope"}, ALL_OPTIONS]),
)
def test_the_cache_and_the_batch_change_no_token(
    prefixes: list[str],
    batch_size: int,
    n_positions: int,
    temperature: float,
    seed: int,
    options: dict[str, Any],
) -> None:
    model = make(seed % 97, n_positions, **options)
    say = functools.partial(
        generate, model, CPU, LETTERS, max_new_tokens=25, temperature=temperature, seed=seed
    )
    alone = say(prefixes, 1, use_cache=False)
    assert say(prefixes, batch_size, use_cache=True) == alone
    assert say(prefixes, batch_size, use_cache=False) == alone


def test_the_model_reads_each_token_once_and_the_kept_half_again() -> None:
    model = make()
    read: list[int] = []
    model.token_embeddings.register_forward_hook(lambda _, ids, out: read.append(ids[0].numel()))
    generate(model, CPU, LETTERS, ["abc"], 1, max_new_tokens=6)
    assert read == [3, 1, 1, 1, 1, 1]
    read.clear()
    generate(model, CPU, LETTERS, ["abcdefgh"], 1, max_new_tokens=9)
    # 8 and 1 fill the 9 positions; 4 are kept and read again, then there is room for 5.
    assert read == [8, 1, 4, 1, 1, 1, 1, 1, 4, 1, 1]
    read.clear()
    generate(model, CPU, LETTERS, ["abcdefgh"], 1, max_new_tokens=4, use_cache=False)
    assert read == [8, 9, 5, 6]


def test_prompts_of_similar_length_share_a_batch_the_longest_first() -> None:
    model = make()
    sizes: list[tuple[int, ...]] = []
    model.token_embeddings.register_forward_hook(lambda _, ids, out: sizes.append(ids[0].shape))
    texts = ["a" * n for n in (2, 7, 3, 7, 1)]
    generate(model, CPU, LETTERS, texts, 2, max_new_tokens=1)
    assert sizes == [(2, 7), (2, 3), (1, 1)]


@pytest.mark.parametrize("n_positions", range(1, 13))
def test_the_window_slides_as_documented(n_positions: int) -> None:
    seen = 0
    for n in range(1, 6 * n_positions):
        if seen == n_positions:
            seen = n_positions // 2
        seen += 1
        assert n - context_start(n, n_positions) == seen
        assert min(n, n_positions // 2 + 1) <= seen <= n_positions


@settings(max_examples=60, deadline=None)
@given(data=st.data(), seed=st.integers(0, 2**16), options=st.sampled_from([{}, *EACH_AND_ALL]))
def test_reading_in_pieces_equals_reading_at_once(
    data: st.DataObject, seed: int, options: dict[str, Any]
) -> None:
    model = make(seed, **options).eval()
    n_rows = data.draw(st.integers(1, 3))
    cache = KeyValueCache(model.shape, n_rows, P, model.head_weight)
    texts: list[list[int]] = [[] for _ in range(n_rows)]
    for _ in range(data.draw(st.integers(1, 4))):
        room = P - max(map(len, texts))
        assume(room)
        width = data.draw(st.integers(1, room))
        masks = data.draw(
            st.lists(
                st.lists(st.integers(0, 1), min_size=width, max_size=width),
                min_size=n_rows, max_size=n_rows,
            )
        )  # fmt: skip
        ids = torch.randint(V, (n_rows, width))
        ours = model.extend(ids, cache, torch.tensor(masks, dtype=torch.float32))
        for row, mask in enumerate(masks):
            where = [t for t in range(width) if mask[t]]
            texts[row] += ids[row, where].tolist()
            if where:
                whole = model.hidden(torch.tensor([texts[row]]))[0, -len(where) :]
                torch.testing.assert_close(ours[row, where], whole, rtol=1e-10, atol=1e-12)
    assert cache.lengths == [len(text) for text in texts]


def test_padding_in_the_cache_never_becomes_a_number_that_counts() -> None:
    """NaN in the keys and values of padding must not reach the content."""
    model = make(seed=1).eval()
    cache = KeyValueCache(model.shape, 2, P, model.head_weight)
    mask = torch.tensor([[0.0, 0.0, 1.0], [1.0, 1.0, 1.0]])
    model.extend(torch.randint(V, (2, 3)), cache, mask)
    clean = [(layer.keys.clone(), layer.values.clone()) for layer in cache.layers]
    lengths = list(cache.lengths)
    ids = torch.randint(V, (2, 1))
    expected = model.extend(ids, cache)
    for layer, (keys, values) in zip(cache.layers, clean, strict=True):
        layer.keys.copy_(keys)
        layer.values.copy_(values)
        layer.keys[:, :, -1] = layer.values[:, :, -1] = math.nan
    cache.lengths = lengths
    assert torch.equal(model.extend(ids, cache), expected)


def test_the_cache_works_under_autocast() -> None:
    model = make(seed=1).float().eval()
    cache = KeyValueCache(model.shape, 2, P, model.head_weight)
    ids = torch.randint(V, (2, 6))
    expected = model.hidden(ids).detach()
    with torch.autocast("cpu", torch.bfloat16):
        pieces = [model.extend(ids[:, :4], cache), model.extend(ids[:, 4:], cache)]
    difference = (torch.cat(pieces, dim=1) - expected).abs().max()
    assert 1e-6 < difference < 0.1 * expected.abs().max()


def test_a_full_cache_is_a_defect_that_shows() -> None:
    model = make().eval()
    cache = KeyValueCache(model.shape, 1, 3, model.head_weight)
    with pytest.raises(AssertionError, match="4 tokens in a cache for 3"):
        model.extend(torch.zeros(1, 4, dtype=torch.int64), cache)
    with pytest.raises(AssertionError, match="eval"):
        model.train().extend(torch.zeros(1, 1, dtype=torch.int64), cache)


# scores


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_scores_equal_the_reference(batch_size: int) -> None:
    model = make()
    ours = score(model, CPU, LETTERS, PREFIXES, batch_size)
    assert ours.shape == (len(PREFIXES), V)
    assert not ours.requires_grad
    for prefix, row in zip(PREFIXES, ours, strict=True):
        ids = (LETTERS.encode(prefix) or [LETTERS.eot_token])[-P:]
        torch.testing.assert_close(row, reference_logits(model, ids), rtol=1e-11, atol=1e-12)


# seeds


def test_draws_depend_on_seed_prefix_and_step_only() -> None:
    model = make()
    say = functools.partial(generate, model, CPU, LETTERS, temperature=2.0)
    whole = say(PREFIXES, 3, 20, seed=1)
    assert say(PREFIXES, 3, 20, seed=1) == whole
    assert say(PREFIXES, 3, 20, seed=2) != whole
    assert say(PREFIXES, 2, 7, seed=1) == [text[:7] for text in whole]
    assert say(PREFIXES[:4], 3, 20, seed=1) == whole[:4]
    twins = say(["abc", "abc"], 2, 20, seed=1)
    assert twins[0] != twins[1]


def test_without_a_seed_torchs_own_decides() -> None:
    model = make()
    say = functools.partial(generate, model, CPU, LETTERS, PREFIXES, 3, 20, temperature=2.0)
    torch.manual_seed(7)
    first, second = say(), say()
    torch.manual_seed(7)
    assert say() == first != second
    state = torch.get_rng_state()
    generate(model, CPU, LETTERS, PREFIXES, 3)  # greedy needs no chance and takes none
    assert torch.equal(torch.get_rng_state(), state)


# ends, modes, tokenizers, mistakes


@pytest.mark.parametrize("use_cache", [True, False])
def test_an_end_of_text_token_ends_a_continuation_where_asked(use_cache: bool) -> None:
    model = make(seed=2)
    settled = functools.partial(
        continue_texts, model, CPU, LETTERS, PREFIXES, 3, 30,
        SamplingConfig(temperature=4.0), seed=0, use_cache=use_cache,
    )  # fmt: skip
    through, stopped = settled(), settled(stop_at_eot=True)
    assert any("·" in c.text for c in through)
    assert not all("·" in c.text for c in through)
    for long, short in zip(through, stopped, strict=True):
        assert long.finish_reason == "length"
        assert len(long.ids) == 30
        assert short.text == long.text.split("·")[0]
        assert short.finish_reason == ("eot" if "·" in long.text else "length")
        assert short.ids == tuple(LETTERS.encode(short.text))


def test_a_batch_stops_when_all_its_rows_have_ended() -> None:
    model = make()
    with torch.no_grad():
        model.token_embeddings.weight.zero_()
        model.ln.weight.zero_()
        model.ln.bias.fill_(1.0)
        model.token_embeddings.weight[LETTERS.eot_token] = 1.0
    steps: list[int] = []
    model.ln.register_forward_hook(lambda *_: steps.append(1))
    assert generate(model, CPU, LETTERS, ["a", "bc"], 2, 5, stop_at_eot=True) == ["", ""]
    assert len(steps) == 1
    assert generate(model, CPU, LETTERS, ["a", "bc"], 2, 5) == ["·····", "·····"]


def test_dropout_is_off_and_the_mode_comes_back() -> None:
    model = make(p_dropout=0.5)
    expected = make(p_dropout=0.0)
    for use_cache in (True, False):
        assert generate(model, CPU, LETTERS, PREFIXES, 3, use_cache=use_cache) == generate(
            expected, CPU, LETTERS, PREFIXES, 3
        )
    torch.testing.assert_close(
        score(model, CPU, LETTERS, PREFIXES, 3), score(expected, CPU, LETTERS, PREFIXES, 3)
    )
    assert model.training
    with torch.no_grad():
        model.ln.weight.fill_(math.nan)
    with pytest.raises(CheckpointError, match="not finite"):
        generate(model, CPU, LETTERS, PREFIXES, 3)
    assert model.training
    model.eval()
    score(model, CPU, LETTERS, PREFIXES, 3)
    assert not model.training


def test_progress_counts_up_to_the_end() -> None:
    model = make()
    seen: list[int] = []
    continue_texts(model, CPU, LETTERS, PREFIXES, 3, 4, SamplingConfig(), on_progress=seen.append)
    assert seen == sorted(seen)
    assert seen[0] == 3
    assert seen[-1] == len(PREFIXES) * 4


def test_nothing_asked_nothing_given() -> None:
    model = make()
    assert generate(model, CPU, LETTERS, [], 4) == []
    assert generate(model, CPU, LETTERS, ["a", ""], 4, max_new_tokens=0) == ["", ""]
    assert score(model, CPU, LETTERS, [], 4).shape == (0, V)


def test_a_tiktoken_encoding_is_a_tokenizer() -> None:
    encoding = tiktoken.Encoding(
        "bytes", pat_str=r"[\s\S]", mergeable_ranks={bytes([i]): i for i in range(256)},
        special_tokens={"<|endoftext|>": 256},
    )  # fmt: skip
    torch.manual_seed(0)
    model = DecoderLM(300, D, H, 32, L)  # more ids than the tokenizer has: rounded up
    with torch.no_grad():
        model.token_embeddings.weight[257:] += 100 * model.ln.weight
        model.ln.bias.fill_(1.0)  # each id beyond the tokenizer's is now the most likely one
    assert score(model, "cpu", encoding, ["a"], 1).argmax() > 256
    texts = ["<|endoftext|>", "", "né"]
    for temperature in (0.0, 1.0):
        assert len(generate(model, "cpu", encoding, texts, 2, 8, temperature, seed=0)) == 3
    marker = score(model, "cpu", encoding, texts, 3)
    assert not torch.allclose(marker[0], marker[1])  # 13 letters, not the special token


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 0}, "batch_size = 0"),
        ({"max_new_tokens": -1}, "max_new_tokens = -1"),
        ({"temperature": -0.5}, "temperature"),
        ({"top_k": 0}, "top_k"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
    ],
)
def test_impossible_settings_are_refused(change: dict[str, float], message: str) -> None:
    arguments = {"batch_size": 2, "max_new_tokens": 3, **change}
    with pytest.raises(ValueError, match=message):
        generate(make(), CPU, LETTERS, ["a"], **arguments)


def test_scoring_in_batches_of_none_is_refused() -> None:
    with pytest.raises(ValueError, match="batch_size = 0"):
        score(make(), CPU, LETTERS, ["a"], 0)


def test_a_tokenizer_of_another_model_is_refused() -> None:
    torch.manual_seed(0)
    small = DecoderLM(22, D, H, P, L)
    with pytest.raises(ValueError, match="token id 22, but the model has n_vocab = 22"):
        generate(small, CPU, LETTERS, ["a"], 1)
    with pytest.raises(ValueError, match="tokenizer"):
        score(small, CPU, LETTERS, ["a"], 1)


@pytest.mark.gpu
def test_a_gpu_writes_what_the_cpu_writes() -> None:
    model = make(seed=2)
    for temperature in (0.0, 1.7):
        say = functools.partial(
            generate, tokenizer=LETTERS, prefixes=PREFIXES, batch_size=3,
            max_new_tokens=3 * P, temperature=temperature, seed=1,
        )  # fmt: skip
        expected = say(model.cpu(), CPU, use_cache=False)
        for use_cache in (True, False):
            assert say(model.cuda(), torch.device("cuda"), use_cache=use_cache) == expected
