"""Attention in blocks of bf16 heads beside attention as it is defined, in float64."""

import math

import pytest
import torch
from torch import Tensor

from model import MultiHeadAttention
from model.attention import attend
from model.cpu import attention as cpu_attention
from model.cpu.attention import attend_in_blocks

ERROR = 0.02
"""Of a whole tensor, relative: every rounding to bf16 is up to 2⁻⁹ = 0.002."""


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def heads(tokens: int, head_dim: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """(2, 3, tokens, head_dim) as projections have it: a token's heads side by side."""
    return torch.randn(2, tokens, 3, head_dim).to(dtype).transpose(1, 2).requires_grad_()


def error(ours: Tensor, expected: Tensor) -> float:
    return float((ours.detach().double() - expected.detach()).norm() / expected.detach().norm())


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("length", [1, 2, 64, 128, 129, 300])
def test_values_and_gradients_are_those_of_attention(length: int, causal: bool) -> None:
    q, k, v = (heads(length, 32) for _ in range(3))
    above = torch.randn(2, 3, length, 32)
    allowed = torch.ones(length, length).tril().bool() if causal else None
    exact = [x.detach().double().requires_grad_() for x in (q, k, v)]
    expected = attend(exact[0], exact[1].mT, exact[2], allowed, 0.25)
    ours = attend_in_blocks(q, k, v, 0.25, 0.0, causal)
    assert (ours.dtype, ours.shape) == (torch.bfloat16, q.shape)
    assert error(ours, expected) < ERROR
    found = torch.autograd.grad(ours, (q, k, v), above.bfloat16())
    wanted = torch.autograd.grad(expected, exact, above.double())
    for name, mine, theirs in zip("qkv", found, wanted, strict=True):
        assert mine.dtype == torch.bfloat16
        if theirs.norm() == 0:  # one key: nothing to choose
            assert mine.norm() < 0.01, name
        else:
            assert error(mine, theirs) < ERROR, name


def test_other_keys_than_queries() -> None:
    q, k, v = heads(70, 32), heads(200, 32), heads(200, 32)
    exact = [x.detach().double().requires_grad_() for x in (q, k, v)]
    ours = attend_in_blocks(q, k, v, 0.2, 0.0, causal=False)
    expected = attend(exact[0], exact[1].mT, exact[2], None, 0.2)
    assert error(ours, expected) < ERROR
    found = torch.autograd.grad(ours.float().square().sum(), (q, k, v))
    wanted = torch.autograd.grad(expected.square().sum(), exact)
    assert max(map(error, found, wanted)) < ERROR


def test_no_query_sees_what_follows_it() -> None:
    q, k, v = (heads(300, 32) for _ in range(3))
    before = attend_in_blocks(q, k, v, 0.2, 0.0, causal=True)
    with torch.no_grad():
        k[:, :, 140:] = 1e4
        v[:, :, 140:] = -1e4
    after = attend_in_blocks(q, k, v, 0.2, 0.0, causal=True)
    assert torch.equal(before[:, :, :140], after[:, :, :140])
    assert not (before == after)[:, :, 140:].all(dim=-1).any()


def test_what_is_not_finite_stays_so() -> None:
    q, k, v = (heads(130, 32) for _ in range(3))
    with torch.no_grad():
        q[0, 1, 129, 3] = math.nan
    out = attend_in_blocks(q, k, v, 0.2, 0.0, causal=True)
    assert out[0, 1, 129].isnan().all()
    assert out[0, 1, :129].isfinite().all()


def test_rotated_float32_queries_have_float32_gradients() -> None:
    q, k, v = heads(64, 32, torch.float32), heads(64, 32, torch.float32), heads(64, 32)
    out = attend_in_blocks(q, k, v, 0.2, 0.0, causal=True)
    rounded = [x.detach().bfloat16().requires_grad_() for x in (q, k, v)]
    same = attend_in_blocks(*rounded, 0.2, 0.0, causal=True)
    assert torch.equal(out, same)
    above = torch.randn_like(out)
    found = torch.autograd.grad(out, (q, k, v), above)
    assert [x.dtype for x in found] == [torch.float32, torch.float32, torch.bfloat16]
    for mine, other in zip(found, torch.autograd.grad(same, rounded, above), strict=True):
        assert torch.equal(mine.bfloat16(), other)


def test_dropout_drops_weights_and_passes_the_gradients_of_the_others() -> None:
    q, k, v = (heads(64, 64) for _ in range(3))

    def attended(values: Tensor) -> Tensor:
        torch.manual_seed(1)
        return attend_in_blocks(q, k, values, 0.125, 0.25, causal=True)

    # With the identity for values the result is the weights that were left.
    left = attended(torch.eye(64, dtype=torch.bfloat16).expand(2, 3, 64, 64)).detach() != 0
    seen = torch.ones(64, 64).tril().bool().expand_as(left)
    assert not (left & ~seen).any()
    assert float(left[seen].double().mean()) == pytest.approx(0.75, abs=0.02)
    exact = [x.detach().double().requires_grad_() for x in (q, k, v)]
    scores = (exact[0] @ exact[1].mT * 0.125).masked_fill(~seen, -math.inf)
    expected = (scores.softmax(-1) * left / 0.75) @ exact[2]
    ours = attended(v)
    assert error(ours, expected) < ERROR
    above = torch.randn_like(ours)
    found = torch.autograd.grad(ours, (q, k, v), above)
    wanted = torch.autograd.grad(expected, exact, above.double())
    assert max(map(error, found, wanted)) < ERROR


@pytest.mark.parametrize(
    ("head_dim", "length", "in_blocks"),
    [(32, 64, True), (64, 512, True), (16, 64, False), (65, 64, False), (32, 63, False),
     (32, 513, False)],
)  # fmt: skip
def test_a_layer_attends_in_blocks_where_it_pays(
    head_dim: int, length: int, in_blocks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = []
    real = cpu_attention._product
    monkeypatch.setattr(
        cpu_attention, "_product", lambda *args: counted.append(1) or real(*args)
    )  # fmt: skip
    mha = MultiHeadAttention(head_dim, 1, 0.0)
    x = torch.randn(1, length, head_dim)
    exact = mha(x)
    assert not counted, "float32 takes PyTorch's kernel"
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = mha(x)
    assert bool(counted) == in_blocks
    assert error(low, exact.double()) < 0.02
