"""FLOPs and parameters against what torch itself counts, and against the course's numbers."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from model.attention import MultiHeadAttention
from model.config import ModelConfig
from model.decoder import DecoderLM
from model.flops import (
    CONVENTIONS,
    count_params,
    flops_per_token,
    flops_per_token_by_part,
    macs_per_token_by_part,
    params_by_group,
)
from model.loss import linear_cross_entropy
from tests.model.comparing import shapes


def whole_logits(model: DecoderLM, ids: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(model(ids).flatten(0, 1), targets.flatten())


def chunked(model: DecoderLM, ids: Tensor, targets: Tensor) -> Tensor:
    hidden = model.hidden(ids).flatten(0, 1)
    return linear_cross_entropy(hidden, model.head_weight, targets.flatten(), 16)


def counted_flops(
    loss_of: Callable[[DecoderLM, Tensor, Tensor], Tensor], shape: ModelConfig, data: st.DataObject
) -> tuple[int, int]:
    """FLOPs of forward + backward by torch's counter and by `matmul`, on a random batch."""
    model = DecoderLM.from_config(shape)
    seq_len = data.draw(st.integers(1, shape.n_positions), "seq_len")
    batch = data.draw(st.integers(1, 3), "batch")
    low = data.draw(st.booleans(), "bf16")
    ids = torch.randint(shape.n_vocab, (batch, seq_len))
    with (
        sdpa_kernel(SDPBackend.MATH),
        FlopCounterMode(display=False) as counter,
        torch.autocast("cpu", dtype=torch.bfloat16, enabled=low),
    ):
        loss_of(model, ids, ids.roll(1)).backward()
    expected = batch * seq_len * flops_per_token(shape, seq_len, "matmul")
    return counter.get_total_flops(), expected


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(shape=shapes(), data=st.data())
def test_matmul_flops_equal_what_torch_counts(shape: ModelConfig, data: st.DataObject) -> None:
    counted, expected = counted_flops(whole_logits, shape, data)
    assert counted == expected


@settings(max_examples=40, deadline=None)
@given(shape=shapes(), data=st.data())
def test_the_chunked_loss_costs_the_same(shape: ModelConfig, data: st.DataObject) -> None:
    """The loss that training uses computes no product twice and none less."""
    counted, expected = counted_flops(chunked, shape, data)
    assert counted == expected


def test_the_written_out_attention_counts_the_same() -> None:
    mha = MultiHeadAttention(12, 3, 0.0)
    x = torch.randn(2, 7, 12, requires_grad=True)
    totals = []
    for mask in (None, torch.ones(2, 7)):
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            mha(x, mask).sum().backward()
        totals.append(counter.get_total_flops())
    assert totals[0] == totals[1] == 2 * 7 * 6 * (4 * 12 * 12 + 2 * 12 * 7)


@settings(max_examples=200, deadline=None)
@given(shape=shapes())
def test_groups_and_parts_add_up(shape: ModelConfig) -> None:
    groups = params_by_group(shape)
    model = DecoderLM.from_config(shape)
    named = dict(model.named_parameters())

    def counted(*words: str) -> int:
        return sum(p.numel() for name, p in named.items() if any(word in name for word in words))

    assert groups == {
        "token_embedding": counted("token_embeddings"),
        "position_embedding": counted("position_embeddings"),
        "attention": counted(".mha."),
        "feed_forward": counted(".ff."),
        "layer_norm": counted("ln_1.", "ln_2.") + counted("ln.weight", "ln.bias"),
    }
    assert count_params(shape) == sum(groups.values()) == sum(p.numel() for p in named.values())
    assert model.flops_per_token == flops_per_token(shape, 1, "nanogpt")
    for convention in CONVENTIONS:
        parts = flops_per_token_by_part(shape, shape.n_positions, convention)
        assert sum(parts.values()) == flops_per_token(shape, shape.n_positions, convention)
    assert flops_per_token(shape, 7, "matmul") == 2 * flops_per_token(shape, 7, "mac")
    head = macs_per_token_by_part(shape, 1)["head"]
    assert head == named["token_embeddings.weight"].numel()


def test_the_course_example_to_the_digit() -> None:
    """GPT-tiny of CMU 11-667, Assignment 2: 2000 steps of 32 sequences of 128 tokens."""
    model = DecoderLM(50257, 32, 2, 128, 2)
    assert sum(p.numel() for p in model.parameters()) == 1_637_792
    assert model.flops_per_token == 9_925_056
    assert model.flops_per_token * 2000 * 1 * 32 * 128 == 81_306_058_752_000
