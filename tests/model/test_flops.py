"""FLOPs and parameters against what torch itself counts, and against the course's numbers.

Equal to the last digit, for every combination of the decoder's options.
"""

import itertools
from collections.abc import Callable
from random import Random

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from model import MultiHeadAttention
from model.config import ModelConfig
from model.decoder import DecoderLM
from model.flops import (
    Convention,
    count_params,
    flops_per_token,
    flops_per_token_by_part,
    macs_per_token_by_part,
    params_by_group,
)
from model.loss import linear_cross_entropy
from model.sampled_softmax import VocabularySample, sampled_cross_entropy
from tests.support.comparing import ALL_OPTIONS, decoder_shapes

NANOGPT, MATMUL, MAC = Convention


def full_softmax(model: DecoderLM, ids: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(model(ids).flatten(0, 1), targets.flatten())


def chunked(model: DecoderLM, ids: Tensor, targets: Tensor) -> Tensor:
    hidden = model.hidden(ids).flatten(0, 1)
    return linear_cross_entropy(
        hidden, model.head_weight, targets.flatten(), 16, bias=model.head_bias
    )


def sampled(n_samples: int) -> Callable[[DecoderLM, Tensor, Tensor], Tensor]:
    def loss(model: DecoderLM, ids: Tensor, targets: Tensor) -> Tensor:
        n_vocab = model.shape.n_vocab
        drawn = torch.randperm(n_vocab)[:n_samples].sort().values
        sample = VocabularySample(drawn, torch.full((n_vocab,), n_samples / n_vocab).log())
        hidden = model.hidden(ids).flatten(0, 1)
        return sampled_cross_entropy(
            hidden, model.head_weight, targets.flatten(), sample, model.head_bias, 16
        )

    return loss


def counted_flops(
    loss_of: Callable[[DecoderLM, Tensor, Tensor], Tensor],
    shape: ModelConfig,
    draw: Callable[[int, int], int],
    logits_per_token: int | None = None,
) -> tuple[int, int]:
    """FLOPs of forward + backward by torch's counter and by `matmul`, on a random batch."""
    model = DecoderLM.from_config(shape)
    seq_len, batch, low = draw(1, shape.n_positions), draw(1, 3), bool(draw(0, 1))
    ids = torch.randint(shape.n_vocab, (batch, seq_len))
    with (
        sdpa_kernel(SDPBackend.MATH),
        FlopCounterMode(display=False) as counter,
        torch.autocast("cpu", dtype=torch.bfloat16, enabled=low),
    ):
        loss_of(model, ids, ids.roll(1)).backward()
    counted = counter.get_total_flops()
    if logits_per_token is not None:
        # The counter sees products of matrices. The target's own row is multiplied element by
        # element: D multiply-adds a token for its logit, D each for both of its gradients.
        counted += batch * seq_len * 2 * (shape.n_embd + 2 * shape.n_embd)
    return counted, batch * seq_len * flops_per_token(shape, seq_len, MATMUL, logits_per_token)


@pytest.mark.slow
@pytest.mark.parametrize("samples", [False, True])
def test_matmul_flops_equal_what_torch_counts(samples: bool) -> None:
    """Every combination of options, each with a random shape: 128 configurations a head."""
    random = Random(samples)
    for present in itertools.product([False, True], repeat=len(ALL_OPTIONS)):
        options = dict(itertools.compress(ALL_OPTIONS.items(), present))
        n_head = random.randint(1, 4)
        shape = ModelConfig(
            n_vocab=random.randint(2, 200),
            n_embd=n_head * random.randint(1, 6) * (2 if "positions" in options else 1),
            n_head=n_head,
            n_positions=random.randint(1, 24),
            n_layer=random.randint(1, 3),
            p_dropout=random.choice([0.0, 0.1]),
            **options,
        )
        n_samples = random.randint(1, shape.n_vocab)
        loss, rows = (sampled(n_samples), n_samples + 1) if samples else (full_softmax, None)
        counted, expected = counted_flops(loss, shape, random.randint, rows)
        assert counted == expected, shape


@settings(max_examples=40, deadline=None)
@given(shape=decoder_shapes(), data=st.data())
def test_the_chunked_loss_costs_the_same(shape: ModelConfig, data: st.DataObject) -> None:
    """The loss that training uses computes no product twice and none less."""
    counted, expected = counted_flops(chunked, shape, drawing(data))
    assert counted == expected


@settings(max_examples=40, deadline=None)
@given(shape=decoder_shapes(), data=st.data())
def test_a_sampled_softmax_costs_the_rows_that_are_drawn_and_the_targets(
    shape: ModelConfig, data: st.DataObject
) -> None:
    n_samples = data.draw(st.integers(1, shape.n_vocab), "n_samples")
    loss = sampled(n_samples)
    counted, expected = counted_flops(loss, shape, drawing(data), n_samples + 1)
    assert counted == expected


def drawing(data: st.DataObject) -> Callable[[int, int], int]:
    return lambda low, high: data.draw(st.integers(low, high))


@settings(max_examples=100, deadline=None)
@given(shape=decoder_shapes(), rows=st.integers(1, 300), seq_len=st.integers(1, 30))
def test_logits_per_token_take_the_place_of_the_vocabulary(
    shape: ModelConfig, rows: int, seq_len: int
) -> None:
    """`nanogpt`: 6 FLOPs for each of the head's parameters that is multiplied, no other change."""
    D = shape.n_embd
    others = sum(p.numel() for p in DecoderLM.from_config(shape).parameters()) - shape.n_vocab * D
    assert flops_per_token(shape, seq_len, NANOGPT, rows) == 6 * (others + rows * D) + (
        12 * shape.n_layer * D * shape.n_positions
    )
    per_row = {NANOGPT: 6, MATMUL: 6, MAC: 3}
    for convention in Convention:
        whole = flops_per_token(shape, seq_len, convention)
        assert flops_per_token(shape, seq_len, convention, shape.n_vocab) == whole
        saved = (shape.n_vocab - rows) * D * per_row[convention]
        assert whole - flops_per_token(shape, seq_len, convention, rows) == saved
        parts = flops_per_token_by_part(shape, seq_len, convention, rows)
        assert sum(parts.values()) == whole - saved


def test_the_written_out_attention_counts_the_same() -> None:
    mha = MultiHeadAttention(12, 3, 0.0)
    x = torch.randn(2, 7, 12, requires_grad=True)
    totals = []
    for mask in (None, torch.ones(2, 7)):
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            mha(x, mask).sum().backward()
        totals.append(counter.get_total_flops())
    assert totals[0] == totals[1] == 2 * 7 * 6 * (4 * 12 * 12 + 2 * 12 * 7)


@settings(max_examples=250, deadline=None)
@given(shape=decoder_shapes())
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
    assert model.flops_per_token == flops_per_token(shape, 1, NANOGPT)
    for convention in Convention:
        parts = flops_per_token_by_part(shape, shape.n_positions, convention)
        assert sum(parts.values()) == flops_per_token(shape, shape.n_positions, convention)
    assert flops_per_token(shape, 7, MATMUL) == 2 * flops_per_token(shape, 7, MAC)
    head = macs_per_token_by_part(shape, 1)["head"]
    assert head == named["token_embeddings.weight"].numel()


def test_the_course_example_to_the_digit() -> None:
    """GPT-tiny of CMU 11-667, Assignment 2: 2000 steps of 32 sequences of 128 tokens."""
    model = DecoderLM(50257, 32, 2, 128, 2)
    assert sum(p.numel() for p in model.parameters()) == 1_637_792
    assert model.flops_per_token == 9_925_056
    assert model.flops_per_token * 2000 * 1 * 32 * 128 == 81_306_058_752_000


def test_the_course_example_with_all_options_to_the_digit() -> None:
    """Worked out by hand: V·D + L·12D², and 12·L·D·P for the scores."""
    model = DecoderLM(50257, 32, 2, 128, 2, **ALL_OPTIONS)
    assert sum(p.numel() for p in model.parameters()) == 50257 * 32 + 2 * 12 * 32**2 == 1_632_800
    assert model.flops_per_token == 6 * 1_632_800 + 12 * 2 * 32 * 128 == 9_895_104
    assert flops_per_token(model.shape, 128, "nanogpt", 1025) == 442_560
