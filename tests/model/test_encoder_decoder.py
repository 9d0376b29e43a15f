"""The encoder-decoder against the plain float64 reference: logits, padding, dropout."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model import EncoderDecoderLM
from model.config import EncoderDecoderConfig
from tests.support import reference_encoder as reference
from tests.support.comparing import (
    CapturedDropout,
    Dropped,
    assert_same_gradients,
    gradients,
)

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
