"""The encoder-decoder's cache: it changes how much is computed, never what is written."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from model import EncoderDecoderLM
from model.config import EncoderDecoderConfig, SamplingConfig
from model.generation.targets import write_targets
from tests.model.generation.test_decoding import CPU, LETTERS
from tests.support.comparing import vary

SHAPE = EncoderDecoderConfig(
    n_vocab=23, n_embd=8, n_head=2, n_source_positions=6, n_target_positions=9,
    n_encoder_layer=1, n_decoder_layer=2, p_dropout=0.1,
)  # fmt: skip


@st.composite
def pair_shapes(draw: st.DrawFn, head_dims: tuple[int, int] = (2, 6)) -> EncoderDecoderConfig:
    n_head = draw(st.integers(1, 3))
    return EncoderDecoderConfig(
        n_vocab=draw(st.integers(3, 40)),
        n_embd=n_head * draw(st.integers(*head_dims)),
        n_head=n_head,
        n_source_positions=draw(st.integers(1, 7)),
        n_target_positions=draw(st.integers(1, 10)),
        n_encoder_layer=draw(st.integers(1, 2)),
        n_decoder_layer=draw(st.integers(1, 3)),
        p_dropout=0.1,
    )


def make(shape: EncoderDecoderConfig = SHAPE, seed: int = 0) -> EncoderDecoderLM:
    torch.manual_seed(seed)
    model = EncoderDecoderLM.from_config(shape).double()
    vary(model)
    return model.eval()


def masks(n_rows: int, width: int) -> st.SearchStrategy[list[list[int]]]:
    """Padding anywhere: before, after, within; rows of nothing else."""
    row = st.lists(st.integers(0, 1), min_size=width, max_size=width)
    return st.lists(row, min_size=n_rows, max_size=n_rows)


def ids_of(model: EncoderDecoderLM, *size: int) -> Tensor:
    return torch.randint(model.shape.n_vocab, size)


@settings(max_examples=60)
@given(data=st.data(), shape=pair_shapes(), seed=st.integers(0, 2**16))
def test_the_cache_changes_no_token(
    data: st.DataObject, shape: EncoderDecoderConfig, seed: int
) -> None:
    model = make(shape, seed)
    n_rows = data.draw(st.integers(1, 4))
    n_source = data.draw(st.integers(1, shape.n_source_positions))
    n_prefix = data.draw(st.integers(1, shape.n_target_positions))
    n_new = data.draw(st.integers(0, shape.n_target_positions - n_prefix + 1))
    settings: dict[str, Any] = {
        "source_mask": data.draw(st.none() | masks(n_rows, n_source).map(torch.tensor)),
        "prefix_mask": data.draw(
            st.none()
            | masks(n_rows, n_prefix).filter(lambda rows: all(map(any, rows))).map(torch.tensor)
        ),
        "temperature": data.draw(st.sampled_from([0.0, 1.0])),
        "stop_id": data.draw(st.none() | st.integers(0, shape.n_vocab - 1)),
    }
    sources, prefixes = ids_of(model, n_rows, n_source), ids_of(model, n_rows, n_prefix)

    def write(use_cache: bool) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return model.generate(
            sources, prefixes, n_new, generator=generator, use_cache=use_cache, **settings
        )

    assert torch.equal(write(True), write(False))


def assert_pieces_equal_the_whole(
    data: st.DataObject, model: EncoderDecoderLM, tolerance: float
) -> None:
    shape = model.shape
    n_rows = data.draw(st.integers(1, 3))
    n_source = data.draw(st.integers(1, shape.n_source_positions))
    source_mask = data.draw(st.none() | masks(n_rows, n_source).map(torch.tensor))
    limit = shape.n_target_positions
    with torch.no_grad():
        memory = model.encode(ids_of(model, n_rows, n_source), source_mask)
        cache = model.remember(memory, limit, source_mask)
        texts: list[list[int]] = [[] for _ in range(n_rows)]
        for _ in range(data.draw(st.integers(1, 4))):
            room = limit - max(map(len, texts))
            assume(room)
            width = data.draw(st.integers(1, room))
            pieces = data.draw(st.none() | masks(n_rows, width))
            ids = ids_of(model, n_rows, width)
            ours = model.extend(ids, cache, None if pieces is None else torch.tensor(pieces))
            for row, mask in enumerate(pieces or [[1] * width] * n_rows):
                where = [t for t in range(width) if mask[t]]
                texts[row] += ids[row, where].tolist()
                if where:
                    its_mask = None if source_mask is None else source_mask[row, None]
                    target = torch.tensor([texts[row]])
                    whole = model.decode(target, memory[row, None], None, its_mask)
                    torch.testing.assert_close(
                        ours[row, where], whole[0, -len(where) :], rtol=tolerance, atol=tolerance
                    )
    assert cache.past.lengths == [len(text) for text in texts]


@settings(max_examples=30)
@given(data=st.data(), shape=pair_shapes(), seed=st.integers(0, 2**16))
def test_reading_a_target_in_pieces_equals_reading_it_at_once(
    data: st.DataObject, shape: EncoderDecoderConfig, seed: int
) -> None:
    assert_pieces_equal_the_whole(data, make(shape, seed), 1e-9)


@settings(max_examples=30)
@given(data=st.data(), shape=pair_shapes((8, 16)), seed=st.integers(0, 2**16))
def test_float32_hidden_states_are_equal_to_five_places(
    data: st.DataObject, shape: EncoderDecoderConfig, seed: int
) -> None:
    """At the weights that training begins with; a LayerNorm of two or three numbers that are as
    good as equal would magnify rounding, with any cache and without."""
    torch.manual_seed(seed)
    assert_pieces_equal_the_whole(data, EncoderDecoderLM.from_config(shape).eval(), 1e-5)


SOURCES = st.lists(st.text("abcdefghijklmnopqrstuv·", max_size=9), min_size=1, max_size=6)


@settings(max_examples=25)
@given(
    sources=SOURCES,
    batch_size=st.integers(1, 6),
    n_new=st.integers(0, SHAPE.n_target_positions),
    temperature=st.sampled_from([0.0, 1.0]),
    stop_at_eot=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_the_cache_and_the_batch_change_no_target(
    sources: list[str],
    batch_size: int,
    n_new: int,
    temperature: float,
    stop_at_eot: bool,
    seed: int,
) -> None:
    """Sources longer than their positions and empty ones included."""
    write = functools.partial(
        write_targets, make(seed=seed % 97), CPU, LETTERS, sources,
        max_new_tokens=n_new, sampling=SamplingConfig(temperature=temperature),
        seed=seed, stop_at_eot=stop_at_eot,
    )  # fmt: skip
    alone = write(batch_size=1, use_cache=False)
    assert write(batch_size=batch_size, use_cache=True) == alone
    assert write(batch_size=batch_size, use_cache=False) == alone


def test_targets_read_each_token_once_and_the_source_once() -> None:
    model = make()
    read: dict[str, list[torch.Size]] = {"own": [], "memory": []}
    block = model.decoder_blocks[0]
    block.mha.k_attn.register_forward_hook(lambda _, x, out: read["own"].append(x[0].shape))
    block.cross.k_attn.register_forward_hook(lambda _, x, out: read["memory"].append(x[0].shape))
    write = functools.partial(
        write_targets, model, CPU, LETTERS, ["abc", "ab"], 2, 4, SamplingConfig(), stop_at_eot=False
    )
    assert len({target.ids for target in write()}) == 2
    assert read == {"own": [(2, 1, 8)] * 4, "memory": [(2, 3, 8)]}
    read["own"].clear()
    write(use_cache=False)
    assert read["own"] == [(2, n, 8) for n in (1, 2, 3, 4)]


def test_no_rows_are_no_error() -> None:
    model = make()
    for use_cache in (True, False):
        none = model.generate(ids_of(model, 0, 3), ids_of(model, 0, 2), 4, use_cache=use_cache)
        assert len(none) == 0


def test_the_cache_works_under_autocast() -> None:
    model = make().float()
    source, target = ids_of(model, 2, 6), ids_of(model, 2, 6)
    mask = torch.tensor([[1, 1, 1, 1, 0, 0], [1] * 6])
    expected = model.hidden(source, target, mask).detach()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        cache = model.remember(model.encode(source, mask), 6, mask)
        pieces = [model.extend(target[:, :4], cache), model.extend(target[:, 4:], cache)]
    difference = (torch.cat(pieces, dim=1) - expected).abs().max()
    assert 1e-6 < difference < 0.1 * expected.abs().max()


def test_misuse_of_the_cache_is_a_defect_that_shows() -> None:
    model = make()
    with torch.no_grad():
        cache = model.remember(model.encode(ids_of(model, 1, 3)), 3)
    with pytest.raises(AssertionError, match="4 tokens in a cache for 3"):
        model.extend(ids_of(model, 1, 4), cache)
    with pytest.raises(AssertionError, match="eval"):
        model.train().extend(ids_of(model, 1, 1), cache)
