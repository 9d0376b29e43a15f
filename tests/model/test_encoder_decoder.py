"""The encoder-decoder against the plain float64 reference: logits, padding, dropout, generation."""

import functools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from budgetsweep.errors import CheckpointError
from model import EncoderDecoderLM
from model.config import EncoderDecoderConfig
from model.encoder_decoder import target_loss
from tests.support import reference_encoder as reference
from tests.support.comparing import (
    CapturedDropout,
    Dropped,
    assert_same_gradients,
    gradients,
    vary,
)
from tests.support.reference_decoder import next_token_loss, softmax

V, D, H, PS, PT = 19, 8, 2, 6, 5
LAYERS = (2, 2)


def shape_of(
    n_vocab: int = V,
    n_embd: int = D,
    n_head: int = H,
    positions: tuple[int, int] = (PS, PT),
    layers: tuple[int, int] = LAYERS,
    p_dropout: float = 0.0,
) -> EncoderDecoderConfig:
    return EncoderDecoderConfig(
        n_vocab=n_vocab, n_embd=n_embd, n_head=n_head, p_dropout=p_dropout,
        n_source_positions=positions[0], n_target_positions=positions[1],
        n_encoder_layer=layers[0], n_decoder_layer=layers[1],
    )  # fmt: skip


def make(p_dropout: float = 0.0, seed: int = 0) -> EncoderDecoderLM:
    """A float64 model whose parameters are all far from their initial values."""
    torch.manual_seed(seed)
    model = EncoderDecoderLM(shape_of(p_dropout=p_dropout)).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return model


def expected_logits(model: EncoderDecoderLM, source: Tensor, target: Tensor) -> Tensor:
    """Of one pair without padding."""
    return reference.pair_logits(dict(model.named_parameters()), source, target, H, LAYERS)


def tokens(*shape: int) -> Tensor:
    return torch.randint(V, shape)


def test_logits_and_all_gradients_equal_the_reference() -> None:
    model = make()
    sources, targets = tokens(3, PS), tokens(3, PT)
    logits = model(sources, targets)
    expected = torch.stack(
        [expected_logits(model, s, t) for s, t in zip(sources, targets, strict=True)]
    )
    torch.testing.assert_close(logits, expected, rtol=1e-11, atol=1e-12)
    direction = torch.randn_like(logits)
    assert_same_gradients(
        gradients((logits * direction).sum(), model),
        gradients((expected * direction).sum(), model),
    )


MASKS = st.lists(st.integers(0, 1), min_size=1, max_size=PT)


@settings(max_examples=30, deadline=None)
@given(source=MASKS, target=MASKS.filter(any), seed=st.integers(0, 2**16))
def test_padding_anywhere_changes_nothing(source: list[int], target: list[int], seed: int) -> None:
    """On either side; a source that is nothing but padding is an empty one."""
    model = make(seed=seed)
    source_ids, target_ids = tokens(1, len(source)), tokens(1, len(target))
    source_mask, target_mask = torch.tensor([source]), torch.tensor([target], dtype=torch.float32)
    s, t = source_mask[0].bool(), target_mask[0].bool()
    ours = model(source_ids, target_ids, source_mask, target_mask)[0, t]
    expected = expected_logits(model, source_ids[0, s], target_ids[0, t])
    torch.testing.assert_close(ours, expected, rtol=1e-11, atol=1e-12)
    if s.any():
        alone = model(source_ids[:, s], target_ids[:, t])[0]
        torch.testing.assert_close(ours, alone, rtol=1e-11, atol=1e-12)


def padded_batch() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    source_mask = torch.tensor(
        [[0, 0, 1, 1, 1, 1], [1, 1, 0, 0, 0, 0], [0, 1, 0, 1, 1, 0], [0] * 6, [1] * 6]
    )
    target_mask = torch.tensor(
        [[1, 1, 1, 0, 0], [0, 0, 0, 1, 1], [1, 1, 1, 1, 1], [1, 1, 1, 1, 0], [0] * 5]
    )
    return tokens(5, 6), tokens(5, 5), source_mask, target_mask


def test_gradients_with_padding_equal_those_of_the_pairs_alone() -> None:
    """Rows of nothing but padding, in source or target, included."""
    model = make()
    source_ids, target_ids, source_mask, target_mask = padded_batch()
    direction = torch.randn(5, 5, V, dtype=torch.float64)
    logits = model(source_ids, target_ids, source_mask, target_mask)
    assert logits.isfinite().all()
    ours = (logits * direction)[target_mask.bool()].sum()
    expected = torch.zeros(())
    for b in range(4):
        s, t = source_mask[b].bool(), target_mask[b].bool()
        pair = expected_logits(model, source_ids[b, s], target_ids[b, t])
        expected = expected + (pair * direction[b, t]).sum()
    assert_same_gradients(gradients(ours, model), gradients(expected, model))


@pytest.mark.parametrize("masked", [False, True])
def test_the_future_of_the_target_changes_nothing_before_it(masked: bool) -> None:
    model = make()
    sources, targets = tokens(2, PS), tokens(2, PT)
    masks = (torch.ones(2, PS), torch.ones(2, PT)) if masked else (None, None)
    before = model(sources, targets, *masks)
    for t in range(1, PT):
        changed = targets.clone()
        changed[:, t:] = (changed[:, t:] + 1 + torch.randint(V - 1, (2, PT - t))) % V
        after = model(sources, changed, *masks)
        assert torch.equal(after[:, :t], before[:, :t])
        assert not torch.equal(after[:, t], before[:, t])


def test_every_target_position_sees_all_source_content_and_no_padding() -> None:
    model = make()
    sources, targets = tokens(1, PS), tokens(1, PT)
    mask = torch.tensor([[0, 1, 1, 0, 1, 1]])
    before = model(sources, targets, mask)
    unmasked = model(sources, targets)
    for s in range(PS):
        changed = sources.clone()
        changed[0, s] = (changed[0, s] + 1) % V
        difference = (model(changed, targets, mask) - before).abs().amax(dim=-1)
        assert (difference > 1e-9).all() if mask[0, s] else not difference.any()
        assert ((model(changed, targets) - unmasked).abs().amax(dim=-1) > 1e-9).all()


def test_pairs_of_a_batch_do_not_mix() -> None:
    model = make()
    sources, targets = tokens(3, PS), tokens(3, PT)
    before = model(sources, targets)
    sources[1] = (sources[1] + 1) % V
    after = model(sources, targets)
    assert torch.equal(after[[0, 2]], before[[0, 2]])
    assert not torch.equal(after[1], before[1])


def test_dropout_is_on_embeddings_weights_and_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the masks that the model drew, the reference gives the same logits."""
    model = make(p_dropout=0.4)
    sources, targets = tokens(1, PS), tokens(1, PT)
    dropout = CapturedDropout()
    monkeypatch.setattr(F, "dropout", dropout)
    logits = model(sources, targets, torch.ones(1, PS), torch.ones(1, PT))
    monkeypatch.undo()

    masks = iter(dropout.masks)
    places: dict[str, Tensor] = {}

    def attention(name: str, queries: int, causal: bool = False) -> None:
        weights = next(masks)[0]
        for head in range(H):
            for t in range(queries):
                row = weights[head, t]
                places[f"{name}.weights.{head}.{t}"] = row[: t + 1] if causal else row
        places[f"{name}.output"] = next(masks)[0]

    places["source.embedding"] = next(masks)[0]
    for i in range(LAYERS[0]):
        attention(f"encoder_blocks.{i}.mha", PS)
        places[f"encoder_blocks.{i}.ff.output"] = next(masks)[0]
    places["target.embedding"] = next(masks)[0]
    for i in range(LAYERS[1]):
        attention(f"decoder_blocks.{i}.mha", PT, causal=True)
        attention(f"decoder_blocks.{i}.cross", PT)
        places[f"decoder_blocks.{i}.ff.output"] = next(masks)[0]
    assert next(masks, None) is None
    drop = Dropped(places)
    parameters = dict(model.named_parameters())
    expected = reference.pair_logits(parameters, sources[0], targets[0], H, LAYERS, drop)
    assert not drop.unused
    torch.testing.assert_close(logits[0], expected, rtol=1e-11, atol=1e-12)


def test_no_dropout_in_evaluation_or_at_zero() -> None:
    sources, targets = tokens(2, PS), tokens(2, PT)
    with_dropout, without = make(0.5), make(0.0)
    assert not torch.equal(with_dropout(sources, targets), with_dropout(sources, targets))
    assert torch.equal(with_dropout.eval()(sources, targets), without(sources, targets))


def test_initial_weights() -> None:
    torch.manual_seed(0)
    model = EncoderDecoderLM(shape_of(1500, 48, 4, (100, 60), (5, 3)))
    additions = {"encoder_blocks": 10, "decoder_blocks": 9}
    for name, parameter in model.named_parameters():
        if name.endswith(".bias"):
            assert torch.equal(parameter, torch.zeros_like(parameter)), name
        elif parameter.ndim == 1:
            assert "ln" in name
            assert torch.equal(parameter, torch.ones_like(parameter)), name
        else:
            residual = ".proj." in name or "linear_out" in name
            n_additions = additions[name.split(".")[0]] if residual else 1
            std, n = 0.02 / math.sqrt(n_additions), parameter.numel()
            assert abs(parameter.std() / std - 1) < 5 / math.sqrt(2 * n), name
            assert abs(parameter.mean()) < 5 * std / math.sqrt(n), name


def test_one_token_embedding_serves_source_target_and_head() -> None:
    model = make()
    assert model.head_weight is model.token_embeddings.weight
    assert [n for n, p in model.named_parameters() if len(p) == V] == ["token_embeddings.weight"]
    hidden = torch.randn(2, 3, D, dtype=torch.float64)
    expected = torch.einsum("btd,vd->btv", hidden, model.token_embeddings.weight)
    torch.testing.assert_close(model.token_logits(hidden), expected)


def test_a_model_has_the_layers_and_the_dropout_of_its_shape() -> None:
    model = EncoderDecoderLM.from_config(shape_of(layers=(1, 3), p_dropout=0.25))
    assert (len(model.encoder_blocks), len(model.decoder_blocks)) == (1, 3)
    parts = (model, model.decoder_blocks[0].cross, model.encoder_blocks[0].ff)
    assert {part.dropout.p for part in parts} == {0.25}


def test_unusable_input_is_a_clear_error() -> None:
    model = make()
    with pytest.raises(ValueError, match=r"7 tokens .* for 6 \(n_source_positions\)"):
        model(tokens(1, PS + 1), tokens(1, PT))
    with pytest.raises(ValueError, match=r"6 tokens .* for 5 \(n_target_positions\)"):
        model(tokens(1, PS), tokens(1, PT + 1))
    with pytest.raises(ValueError, match="1 targets for 2 sources"):
        model(tokens(2, PS), tokens(1, PT))
    with pytest.raises(ValueError, match=r"\(1, 3\), expected that of input_ids, \(1, 6\)"):
        model(tokens(1, PS), tokens(1, PT), torch.ones(1, 3))
    with pytest.raises(ValueError, match=r"n_embd = 10 is not a multiple of n_head = 4"):
        shape_of(n_embd=10, n_head=4)


# Training on the target


def test_loss_is_that_of_the_targets_content_with_gradients() -> None:
    model = make()
    source_ids, target_ids, source_mask, target_mask = padded_batch()
    target_mask[2] = torch.tensor([1, 1, 0, 1, 1])  # across a hole nothing is predicted
    loss = target_loss(model, source_ids, target_ids, source_mask, target_mask, chunk_tokens=3)
    losses = []
    for b in range(5):
        s, t = source_mask[b].bool(), target_mask[b].bool()
        if not t.any():
            continue
        logits = expected_logits(model, source_ids[b, s], target_ids[b, t])
        ids = target_ids[b, t]
        steps = [0, 2] if b == 2 else range(len(ids) - 1)
        losses += [-torch.log(softmax(logits[i])[ids[i + 1]]) for i in steps]
    assert len(losses) == 2 + 1 + 2 + 3
    expected = torch.stack(losses).mean()
    torch.testing.assert_close(loss, expected, rtol=1e-11, atol=1e-12)
    assert_same_gradients(gradients(loss, model), gradients(expected, model))


def test_loss_without_padding_is_the_next_token_loss() -> None:
    model = make()
    sources, targets = tokens(2, PS), tokens(2, PT)
    expected = torch.stack(
        [
            next_token_loss(expected_logits(model, s, t), t)
            for s, t in zip(sources, targets, strict=True)
        ]
    ).mean()
    torch.testing.assert_close(target_loss(model, sources, targets), expected)
    with torch.no_grad():
        torch.testing.assert_close(target_loss(model, sources, targets), expected.detach())


def test_targets_without_a_second_token_are_a_clear_error() -> None:
    model = make()
    with pytest.raises(ValueError, match="less than two tokens of content"):
        target_loss(model, tokens(2, PS), tokens(2, 1))
    with pytest.raises(ValueError, match="less than two tokens of content"):
        target_loss(model, tokens(1, PS), tokens(1, 3), None, torch.tensor([[0, 0, 1]]))


# Generation


def make_varied(p_dropout: float = 0.0, seed: int = 0) -> EncoderDecoderLM:
    torch.manual_seed(seed)
    model = EncoderDecoderLM(shape_of(p_dropout=p_dropout)).double()
    vary(model)
    return model


def test_greedy_generation_is_the_references_best_token_at_each_step() -> None:
    model = make_varied()
    sources, prefixes = tokens(10, PS), tokens(10, 2)
    written = model.generate(sources, prefixes, 4)
    assert len(set(map(tuple, written.tolist()))) > 5
    for source, prefix, row in zip(sources, prefixes, written, strict=True):
        ids = prefix
        for _ in range(4):
            best = expected_logits(model, source, ids)[-1].argmax()
            ids = torch.cat([ids, best[None]])
        assert torch.equal(row, ids[2:])


def test_generation_does_not_depend_on_padding_or_batch() -> None:
    model = make_varied()
    sources = [tokens(n) for n in (6, 2, 4, 1) * 4]
    prefixes = [tokens(n) for n in (1, 3, 2, 1) * 4]
    alone = [model.generate(s[None], p[None], 3)[0] for s, p in zip(sources, prefixes, strict=True)]

    def padded(rows: list[Tensor], width: int, left: bool) -> tuple[Tensor, Tensor]:
        ids, mask = tokens(len(rows), width), torch.zeros(len(rows), width)
        for b, row in enumerate(rows):
            place = slice(width - len(row), width) if left else slice(len(row))
            ids[b, place], mask[b, place] = row, 1.0
        return ids, mask

    assert len({tuple(row.tolist()) for row in alone}) > 8
    for left in (True, False):
        source_ids, source_mask = padded(sources, 6, not left)
        prefix_ids, prefix_mask = padded(prefixes, 3, left)
        together = model.generate(source_ids, prefix_ids, 3, source_mask, prefix_mask)
        assert torch.equal(together, torch.stack(alone))


@pytest.mark.parametrize("use_cache", [True, False])
def test_the_encoder_runs_once_and_the_mode_comes_back(use_cache: bool) -> None:
    model = make_varied(p_dropout=0.5)
    read: dict[str, list[int]] = {"encoder": [], "decoder": [], "memory": []}

    def count(name: str, module: torch.nn.Module) -> None:
        module.register_forward_hook(lambda _, x, out: read[name].append(x[0].shape[1]))

    block = model.decoder_blocks[1]
    count("encoder", model.encoder_blocks[0])
    count("decoder", block.mha.k_attn)
    count("memory", block.cross.k_attn)
    sources, prefixes = tokens(2, PS), tokens(2, 2)
    out = model.generate(sources, prefixes, 4, use_cache=use_cache)
    assert read == {
        "encoder": [PS],
        "decoder": [2, 1, 1, 1] if use_cache else [2, 3, 4, 5],
        "memory": [PS] if use_cache else [PS] * 4,
    }
    assert out.shape == (2, 4)
    assert model.training
    assert torch.equal(out, model.generate(sources, prefixes, 4, use_cache=use_cache))  # no dropout
    assert torch.equal(out, make_varied().eval().generate(sources, prefixes, 4))
    assert model.generate(sources, prefixes, 0).shape == (2, 0)
    model.eval().generate(sources, prefixes, 1)
    assert not model.training


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_draws_follow_the_softmax_at_a_temperature(temperature: float) -> None:
    model = make_varied()
    source, prefix, n = tokens(1, PS), tokens(1, 2), 4000
    generator = torch.Generator().manual_seed(0)
    drawn = model.generate(
        source.expand(n, -1), prefix.expand(n, -1), 1, temperature=temperature, generator=generator
    )
    logits = expected_logits(model, source[0], prefix[0])[-1].detach()
    p = softmax(logits / temperature)
    counts = drawn.flatten().bincount(minlength=V).double()
    assert ((counts - n * p).abs() <= 5 * (n * p * (1 - p)).sqrt() + 1).all()
    assert (counts > 0).sum() > 1


def test_draws_repeat_with_the_generator_and_approach_greedy() -> None:
    model = make_varied()
    source, prefix = tokens(20, PS), tokens(20, 1)

    def draw(seed: int, temperature: float) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return model.generate(source, prefix, 4, temperature=temperature, generator=generator)

    assert torch.equal(draw(1, 1.0), draw(1, 1.0))
    assert not torch.equal(draw(1, 1.0), draw(2, 1.0))
    greedy = model.generate(source, prefix, 4)
    assert torch.equal(draw(1, 1e-300), greedy)
    assert not torch.equal(draw(1, 5.0), greedy)


@pytest.mark.parametrize("use_cache", [True, False])
def test_generation_stops_at_the_stop_id(use_cache: bool) -> None:
    model = make_varied()
    source, prefix = tokens(6, PS), tokens(6, 1)
    free = model.generate(source, prefix, 5)
    stop = int(free[0, 1])
    out = model.generate(source, prefix, 5, stop_id=stop, use_cache=use_cache)
    ends = [row.tolist().index(stop) if stop in row else 5 for row in free]
    assert out.shape[1] == min(5, max(ends) + 1)
    for row, expected, end in zip(out, free, ends, strict=True):
        assert torch.equal(row[:end], expected[:end])
        assert (row[end:] == stop).all()
    alone = model.generate(source[:1], prefix[:1], 5, stop_id=stop, use_cache=use_cache)
    assert alone.shape[1] == ends[0] + 1 <= 2


@pytest.mark.parametrize("use_cache", [True, False])
def test_what_cannot_be_generated_is_a_clear_error(use_cache: bool) -> None:
    model = make()
    generate = functools.partial(model.generate, use_cache=use_cache)
    source, prefix = tokens(1, PS), tokens(1, 2)
    assert generate(source, prefix, 4).shape == (1, 4)  # the last one is not read
    with pytest.raises(ValueError, match=r"5 new tokens after 2, .* 5 \(n_target_positions\)"):
        generate(source, prefix, 5)
    for temperature in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match=f"temperature = {temperature}"):
            generate(source, prefix, 1, temperature=temperature)
    with pytest.raises(ValueError, match="a prefix without content"):
        generate(source, prefix, 1, prefix_mask=torch.zeros(1, 2))
    with pytest.raises(ValueError, match="1 targets for 2 sources"):
        generate(tokens(2, PS), prefix, 1)
    with pytest.raises(ValueError, match=r"\(1, 3\), expected that of input_ids, \(1, 2\)"):
        generate(source, prefix, 1, prefix_mask=torch.ones(1, 3))
    with torch.no_grad():
        model.ln.weight.fill_(math.nan)
    with pytest.raises(CheckpointError, match="not finite"):
        generate(source, prefix, 1)
    assert model.training


def test_it_learns_to_reverse_its_source() -> None:
    """Fresh random sources of unequal length: nothing to remember, all to be read by attention."""
    torch.manual_seed(0)
    n, longest, start, pad = 6, 4, 6, 7
    model = EncoderDecoderLM(shape_of(8, 32, 2, (longest, longest + 1), (1, 1)))
    optimizer = torch.optim.Adam(model.parameters(), lr=4e-3)
    generator = torch.Generator().manual_seed(0)

    def batch(rows: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        sources = torch.randint(n, (rows, longest), generator=generator)
        lengths = torch.randint(2, longest + 1, (rows, 1), generator=generator)
        columns = torch.arange(longest)
        source_mask = columns < lengths
        reversed_ = sources.gather(1, (lengths - 1 - columns).clamp(min=0))
        targets = torch.cat([torch.full((rows, 1), start), reversed_], dim=1)
        target_mask = torch.arange(longest + 1) <= lengths
        return (
            sources.where(source_mask, pad), targets.where(target_mask, pad),
            source_mask, target_mask,
        )  # fmt: skip

    losses = []
    for _ in range(500):
        loss = target_loss(model, *batch(64))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 0.9 * math.log(n)
    sources, targets, source_mask, target_mask = batch(200)
    written = model.generate(sources, targets[:, :1], longest, source_mask)
    right = (written == targets[:, 1:]) | ~target_mask[:, 1:]
    assert right.all(dim=1).double().mean() > 0.97
