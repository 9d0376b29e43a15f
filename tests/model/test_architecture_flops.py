"""Parameters and FLOPs of encoder and encoder-decoder against what torch itself counts."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from model.config import EncoderDecoderConfig, ModelConfig
from model.encoder_decoder import EncoderDecoderLM
from model.flops import (
    Convention,
    count_params,
    flops_per_masked_sequence_by_part,
    flops_per_pair_by_part,
    flops_per_token,
    macs_per_pair_by_part,
    params_by_group,
)
from tests.support.comparing import pair_shapes

NANOGPT, MATMUL, MAC = Convention


def flops_per_pair(shape: EncoderDecoderConfig, *arguments: Any) -> int:
    return sum(flops_per_pair_by_part(shape, *arguments).values())


def flops_per_masked_sequence(shape: ModelConfig, *arguments: Any) -> int:
    return sum(flops_per_masked_sequence_by_part(shape, *arguments).values())


def counted(compute: Callable[[], Tensor]) -> tuple[int, int]:
    """FLOPs of the forward pass and of both passes, by torch's counter."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        value = compute()
        forward = counter.get_total_flops()
        value.backward()
        return forward, counter.get_total_flops()


def mask_of(data: st.DataObject, name: str, *shape: int) -> Tensor | None:
    """Padding costs as much as content: masks change no count."""
    return torch.ones(shape) if data.draw(st.booleans(), name) else None


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(shape=pair_shapes((1, 12)), data=st.data())
def test_pair_matmul_flops_equal_what_torch_counts(
    shape: EncoderDecoderConfig, data: st.DataObject
) -> None:
    model = EncoderDecoderLM.from_config(shape)
    batch = data.draw(st.integers(1, 3), "batch")
    source_len = data.draw(st.integers(1, shape.n_source_positions), "source_len")
    target_len = data.draw(st.integers(1, shape.n_target_positions), "target_len")
    sources = torch.randint(shape.n_vocab, (batch, source_len))
    targets = torch.randint(shape.n_vocab, (batch, target_len))
    masks = (
        mask_of(data, "source masked", batch, source_len),
        mask_of(data, "target masked", batch, target_len),
    )
    expected = batch * flops_per_pair(shape, source_len, target_len, MATMUL)
    assert counted(lambda: model(sources, targets, *masks).sum()) == (expected // 3, expected)


def grouped(model: nn.Module) -> dict[str, int]:
    """Parameters by group, from the names in the module."""
    words = {
        "token_embedding": "token_embeddings.",
        "position_embedding": "position_embeddings.",
        "attention": ".mha.",
        "cross_attention": ".cross.",
        "feed_forward": ".ff.",
    }
    counts = dict.fromkeys([*words, "layer_norm"], 0)
    for name, parameter in model.named_parameters():
        groups = [group for group, word in words.items() if word in name]
        if not groups:
            assert "ln" in name
            groups = ["layer_norm"]
        assert len(groups) == 1, name
        counts[groups[0]] += parameter.numel()
    return counts


@settings(max_examples=200, deadline=None)
@given(shape=pair_shapes((1, 12)), source_len=st.integers(1, 50), target_len=st.integers(1, 50))
def test_pair_parameters_equal_the_modules_and_macs_their_flops(
    shape: EncoderDecoderConfig, source_len: int, target_len: int
) -> None:
    model = EncoderDecoderLM.from_config(shape)
    n_params = sum(p.numel() for p in model.parameters())
    assert params_by_group(shape) == grouped(model)
    v, d = shape.n_vocab, shape.n_embd
    positions = shape.n_source_positions + shape.n_target_positions
    closed_form = (
        (v + positions) * d
        + shape.n_encoder_layer * (12 * d * d + 13 * d)
        + shape.n_decoder_layer * (16 * d * d + 19 * d)
        + 4 * d
    )
    assert count_params(shape) == n_params == closed_form
    lengths = (source_len, target_len)
    macs = 3 * sum(macs_per_pair_by_part(shape, *lengths).values())
    assert flops_per_pair(shape, *lengths, MAC) == macs
    assert flops_per_pair(shape, *lengths, MATMUL) == 2 * macs


@settings(max_examples=50, deadline=None)
@given(shape=pair_shapes((1, 12)), source_len=st.integers(1, 50), target_len=st.integers(1, 50))
def test_pair_nanogpt_charges_each_parameter_for_the_tokens_that_pass_it(
    shape: EncoderDecoderConfig, source_len: int, target_len: int
) -> None:
    """Sides told apart by the names in the module; look-ups of the source are free."""
    source = target = 0
    for name, parameter in EncoderDecoderLM.from_config(shape).named_parameters():
        reads_source = name.startswith(("source_", "encoder_")) or any(
            word in name for word in (".cross.k_attn", ".cross.v_attn")
        )
        source += parameter.numel() * reads_source
        target += parameter.numel() * (not reads_source)
    d, ps, pt = shape.n_embd, shape.n_source_positions, shape.n_target_positions
    expected = source_len * (6 * source + 12 * shape.n_encoder_layer * d * ps)
    expected += target_len * (6 * target + 12 * shape.n_decoder_layer * d * (pt + ps))
    assert flops_per_pair(shape, source_len, target_len, NANOGPT) == expected
    assert flops_per_pair(shape, source_len, target_len, NANOGPT, 0) == expected


def test_masked_sequences_by_hand() -> None:
    shape = ModelConfig(n_vocab=10, n_embd=4, n_head=2, n_positions=8, n_layer=3)
    body = 3 * (12 * 4 * 4 + 2 * 4 * 5)  # products and scores of a token among five
    assert flops_per_masked_sequence(shape, 5, 2, MAC) == 3 * (5 * body + 2 * 10 * 4)
    assert flops_per_masked_sequence(shape, 5, 2, MATMUL) == 6 * (5 * body + 2 * 10 * 4)
    assert flops_per_masked_sequence(shape, 5, 2, NANOGPT) == 5 * flops_per_token(shape, 5)
    everywhere = flops_per_masked_sequence(shape, 5, 5, MATMUL)
    assert everywhere == 5 * flops_per_token(shape, 5, MATMUL)


def test_the_decoders_configuration_is_as_before() -> None:
    # Studies know a configuration by a hash of this.
    sizes = {"n_vocab": 5, "n_embd": 4, "n_head": 2, "n_positions": 3, "n_layer": 1}
    shape = ModelConfig(**sizes)
    assert shape.options() == {}
    assert shape.sizes() == {**sizes, "p_dropout": 0.1}


def test_a_pairs_shape_is_checked() -> None:
    sizes = {"n_vocab": 5, "n_embd": 6, "n_head": 4, "n_source_positions": 3}
    sizes |= {"n_target_positions": 3, "n_encoder_layer": 1, "n_decoder_layer": 1}
    with pytest.raises(ValidationError, match="n_embd = 6 is not a multiple of n_head = 4"):
        EncoderDecoderConfig.model_validate(sizes)
    with pytest.raises(ValidationError, match="n_decoder_layer"):
        EncoderDecoderConfig.model_validate({**sizes, "n_head": 2, "n_decoder_layer": 0})
    with pytest.raises(ValidationError, match="n_layer"):
        EncoderDecoderConfig.model_validate({**sizes, "n_head": 2, "n_layer": 2})
