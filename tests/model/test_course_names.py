"""What the tests of CMU 11-667, Assignment 2 rely on: names, positions of arguments, shapes."""

import inspect

import pytest
import torch

from model import (
    DecoderBlock,
    DecoderLM,
    FeedForward,
    MultiHeadAttention,
    generate,
    score,
    softmax_with_temperature,
)

B, S, D, H, V = 2, 5, 12, 3, 17
BLOCK = [
    *(f"mha.{part}.{kind}" for part in ("q_attn", "k_attn", "v_attn", "proj") for kind in "wb"),
    *(f"ff.{part}.{kind}" for part in ("linear_in", "linear_out") for kind in "wb"),
    *(f"ln_{i}.{kind}" for i in (1, 2) for kind in "wb"),
]
KINDS = {"w": "weight", "b": "bias"}


def test_signatures() -> None:
    def parameters(function: object) -> list[str]:
        return [name for name in inspect.signature(function).parameters if name != "self"]

    assert parameters(MultiHeadAttention)[:3] == ["n_embd", "n_head", "p_dropout"]
    assert parameters(MultiHeadAttention.q_kT_v) == ["x"]
    assert parameters(MultiHeadAttention.self_attention) == ["q", "kT", "v", "attention_mask"]
    assert parameters(MultiHeadAttention.projection) == ["attn"]
    assert parameters(MultiHeadAttention.forward)[:2] == ["x", "attention_mask"]
    assert parameters(FeedForward)[:2] == ["n_embd", "p_dropout"]
    assert parameters(DecoderBlock)[:2] == ["n_embd", "n_head"]
    assert parameters(DecoderBlock.forward)[:2] == ["x", "attention_mask"]
    assert parameters(DecoderLM)[:6] == [
        "n_vocab",
        "n_embd",
        "n_head",
        "n_positions",
        "n_layer",
        "p_dropout",
    ]
    for cls in (MultiHeadAttention, FeedForward, DecoderLM):
        assert inspect.signature(cls).parameters["p_dropout"].default == 0.1
    common = ["model", "device", "tokenizer"]
    assert parameters(generate)[:7] == [
        *common, "prefixes", "batch_size", "max_new_tokens", "temperature"
    ]  # fmt: skip
    assert inspect.signature(generate).parameters["max_new_tokens"].default == 32
    assert inspect.signature(generate).parameters["temperature"].default == 0.0
    assert parameters(score) == [*common, "texts", "batch_size"]
    assert parameters(softmax_with_temperature) == ["logits", "temperature"]


@pytest.mark.parametrize("mask", [None, torch.ones(B, S), torch.ones(B, S, dtype=torch.int64)])
def test_shapes_by_position(mask: torch.Tensor | None) -> None:
    mha = MultiHeadAttention(D, H)
    x = torch.randn(B, S, D)
    q, kT, v = mha.q_kT_v(x)
    assert (q.shape, kT.shape, v.shape) == ((B, H, S, 4), (B, H, 4, S), (B, H, S, 4))
    attn = mha.self_attention(q, kT, v, mask)
    assert attn.shape == mha.projection(attn).shape == mha(x, mask).shape == (B, S, D)
    assert FeedForward(D)(x).shape == (B, S, D)
    assert DecoderBlock(D, H)(x, mask).shape == (B, S, D)

    model = DecoderLM(V, D, H, 8, 2)
    ids = torch.randint(V, (B, S))
    assert model.embed(ids, mask).shape == (B, S, D)
    assert model.token_logits(x).shape == model(ids, mask).shape == (B, S, V)
    assert isinstance(model.flops_per_token, int)


def test_self_attention_stands_before_the_projection() -> None:
    mha = MultiHeadAttention(D, H, 0.0)
    x = torch.randn(B, S, D)
    assert torch.equal(mha(x), mha.projection(mha.self_attention(*mha.q_kT_v(x))))


def test_width_must_be_a_multiple_of_the_heads() -> None:
    for part in (MultiHeadAttention, DecoderBlock):
        with pytest.raises(ValueError, match=r"n_embd = 10 is not a multiple of n_head = 4"):
            part(10, 4)
        with pytest.raises(ValueError, match=r"n_head\n.* greater than or equal to 1 .*=0"):
            part(8, 0)


def test_queries_and_keys_belong_to_the_same_head() -> None:
    mha = MultiHeadAttention(D, H)
    x = torch.randn(B, S, D)
    q, kT, v = mha.q_kT_v(x)
    for head in range(H):
        columns = slice(4 * head, 4 * head + 4)
        torch.testing.assert_close(q[:, head], mha.q_attn(x)[..., columns])
        torch.testing.assert_close(kT[:, head].mT, mha.k_attn(x)[..., columns])
        torch.testing.assert_close(v[:, head], mha.v_attn(x)[..., columns])


def test_state_dict_has_the_names_of_the_course() -> None:
    model = DecoderLM(V, D, H, 8, 2)
    expected = {"token_embeddings.weight", "position_embeddings.weight", "ln.weight", "ln.bias"}
    for i in range(2):
        expected |= {f"blocks.{i}.{name[:-1]}{KINDS[name[-1]]}" for name in BLOCK}
        expected.add(f"blocks.{i}.mha.scale_factor")
    state = model.state_dict()
    assert set(state) == expected
    assert state["blocks.1.mha.scale_factor"] == torch.tensor(4**-0.5)

    other = DecoderLM(V, D, H, 8, 2)
    other.load_state_dict(state)
    ids = torch.randint(V, (B, S))
    assert torch.equal(other.eval()(ids), model.eval()(ids))
