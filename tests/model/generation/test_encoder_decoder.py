"""What an encoder-decoder writes, and its cache, which never changes what is written."""

from __future__ import annotations

import functools
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from budgetsweep.errors import CheckpointError
from model import EncoderDecoderLM
from model.config import EncoderDecoderConfig, SamplingConfig
from model.generation.encoder_decoder import write_targets
from tests.model.generation.test_decoding import CPU, LETTERS
from tests.support.comparing import pair_shapes, vary
from tests.support.reference_encoder import pair_logits

SHAPE = EncoderDecoderConfig(
    n_vocab=23, n_embd=8, n_head=2, n_source_positions=6, n_target_positions=9,
    n_encoder_layer=1, n_decoder_layer=2, p_dropout=0.1,
)  # fmt: skip


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


def ids_written(model: EncoderDecoderLM, *arguments: Any, **options: Any) -> list[list[int]]:
    """What `write_targets` gives with the letters' tokenizer on a CPU."""
    return [list(c.ids) for c in write_targets(model, CPU, LETTERS, *arguments, **options)]


def test_greedy_targets_are_the_references_best_token_at_each_step() -> None:
    model = make(seed=2)
    parameters = dict(model.named_parameters())
    drawn = [LETTERS.decode(torch.randint(22, (8,)).tolist()) for _ in range(10)]
    sources, prefixes = [text[:6] for text in drawn], [text[6:] for text in drawn]
    written = ids_written(
        model, sources, 4, 6, SamplingConfig(), prefixes=prefixes, stop_at_eot=False
    )
    assert len(set(map(tuple, written))) > 5
    for source, prefix, row in zip(sources, prefixes, written, strict=True):
        ids = [LETTERS.eot_token, *LETTERS.encode(prefix)]
        for _ in range(6):
            logits = pair_logits(
                parameters, torch.tensor(LETTERS.encode(source)), torch.tensor(ids), 2, (1, 2)
            )
            ids.append(int(logits[-1].argmax()))
        assert row == ids[3:]


TEXTS = st.text("abcdefghijklmnopqrstuv·", max_size=9)


@settings(max_examples=40)
@given(
    sources=st.lists(TEXTS, min_size=1, max_size=6),
    batch_size=st.integers(1, 6),
    n_new=st.integers(0, SHAPE.n_target_positions),
    temperature=st.sampled_from([0.0, 1.0]),
    seed=st.integers(0, 2**32),
)
def test_the_cache_and_the_batch_change_no_target(
    sources: list[str], batch_size: int, n_new: int, temperature: float, seed: int
) -> None:
    """Sources longer than their positions and empty ones included."""
    write = functools.partial(
        ids_written, make(seed=seed % 97), sources, max_new_tokens=n_new,
        sampling=SamplingConfig(temperature=temperature), seed=seed,
    )  # fmt: skip
    alone = write(batch_size=1, use_cache=False, stop_at_eot=False)
    assert write(batch_size=batch_size, use_cache=True, stop_at_eot=False) == alone
    assert write(batch_size=batch_size, use_cache=False, stop_at_eot=False) == alone
    until_the_end = [row[: row.index(22)] if 22 in row else row for row in alone]
    for use_cache in (True, False):
        assert write(batch_size=batch_size, use_cache=use_cache) == until_the_end


@pytest.mark.parametrize("use_cache", [True, False])
def test_each_token_and_source_is_read_once_and_the_mode_comes_back(use_cache: bool) -> None:
    model = make().train()
    read: dict[str, list[int]] = {"encoder": [], "decoder": [], "memory": []}

    def count(name: str, module: torch.nn.Module) -> None:
        module.register_forward_hook(lambda _, x, out: read[name].append(x[0].shape[1]))

    block = model.decoder_blocks[1]
    count("encoder", model.encoder_blocks[0])
    count("decoder", block.mha.k_attn)
    count("memory", block.cross.k_attn)
    write = functools.partial(
        ids_written, model, ["abc", "ab"], 2, sampling=SamplingConfig(),
        stop_at_eot=False, use_cache=use_cache,
    )  # fmt: skip
    written = write(max_new_tokens=4)
    assert written[0] != written[1]
    assert read == {
        "encoder": [3],
        "decoder": [1, 1, 1, 1] if use_cache else [1, 2, 3, 4],
        "memory": [3] if use_cache else [3] * 4,
    }
    assert model.training
    assert write(max_new_tokens=4) == written  # no dropout
    assert write(max_new_tokens=0) == [[], []]
    model.eval()
    write(max_new_tokens=1)
    assert not model.training


@pytest.mark.parametrize("use_cache", [True, False])
def test_what_cannot_be_written_is_a_clear_error(use_cache: bool) -> None:
    model = make().train()
    write = functools.partial(
        ids_written, model, ["abc"], 1, sampling=SamplingConfig(), use_cache=use_cache
    )
    assert len(write(max_new_tokens=9, stop_at_eot=False)[0]) == 9
    with pytest.raises(ValueError, match=r"10 new tokens .* 9 \(n_target_positions\)"):
        write(max_new_tokens=10)
    assert ids_written(model, [], 2, 4, SamplingConfig(), use_cache=use_cache) == []
    with torch.no_grad():
        model.ln.weight.fill_(math.nan)
    with pytest.raises(CheckpointError, match="not finite"):
        write(max_new_tokens=1)
    assert model.training


@pytest.mark.slow
def test_it_learns_to_reverse_its_source() -> None:
    """Fresh random sources of unequal length: nothing to remember, all to be read by attention."""
    torch.manual_seed(0)
    n, longest, pad = 6, 4, 7
    shape = SHAPE.model_copy(
        update={"n_embd": 32, "n_source_positions": longest, "n_decoder_layer": 1, "p_dropout": 0.0}
    )
    model = EncoderDecoderLM(shape)
    optimizer = torch.optim.Adam(model.parameters(), lr=4e-3)
    generator = torch.Generator().manual_seed(0)

    def batch(rows: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        sources = torch.randint(n, (rows, longest), generator=generator)
        lengths = torch.randint(2, longest + 1, (rows, 1), generator=generator)
        columns = torch.arange(longest)
        source_mask = columns < lengths
        reversed_ = sources.gather(1, (lengths - 1 - columns).clamp(min=0))
        targets = torch.cat([torch.full((rows, 1), LETTERS.eot_token), reversed_], dim=1)
        target_mask = torch.arange(longest + 1) <= lengths
        return sources.where(source_mask, pad), targets, source_mask, target_mask

    losses = []
    for _ in range(500):
        sources, targets, source_mask, target_mask = batch(64)
        logits = model(sources, targets[:, :-1], source_mask)
        counts = target_mask[:, 1:]
        loss = F.cross_entropy(logits[counts], targets[:, 1:][counts])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 0.9 * math.log(n)
    sources, targets, source_mask, target_mask = batch(200)
    texts = [LETTERS.decode(row[m].tolist()) for row, m in zip(sources, source_mask, strict=True)]
    written = torch.tensor(
        ids_written(model, texts, 200, longest, SamplingConfig(), stop_at_eot=False)
    )
    right = (written == targets[:, 1:]) | ~target_mask[:, 1:]
    assert right.all(dim=1).double().mean() > 0.97


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
