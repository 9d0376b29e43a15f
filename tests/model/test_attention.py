"""Self- and cross-attention against loops, with padding, dropout and rows that see nothing."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from model.attention import CrossAttention, SelfAttention, attend
from tests.support import reference_encoder as reference
from tests.support.comparing import assert_same_derivatives, part_shape
from tests.support.reference_decoder import keep_all

MASKS = {
    "left": [0, 0, 1, 1, 1, 1],
    "right": [1, 1, 1, 1, 0, 0],
    "holes": [0, 1, 0, 1, 1, 0],
    "none": [1, 1, 1, 1, 1, 1],
    "one": [0, 0, 0, 1, 0, 0],
}
both_directions = pytest.mark.parametrize("causal", [True, False], ids=["causal", "both ways"])


def make(
    n_embd: int = 8, n_head: int = 2, p_dropout: float = 0.0, causal: bool = True
) -> SelfAttention:
    torch.manual_seed(0)
    return SelfAttention(part_shape(n_embd, n_head, p_dropout), causal=causal).double()


def make_cross(n_embd: int = 8, n_head: int = 2, p_dropout: float = 0.0) -> CrossAttention:
    torch.manual_seed(0)
    return CrossAttention(part_shape(n_embd, n_head, p_dropout)).double()


def looped(part: SelfAttention | CrossAttention, x: Tensor, memory: Tensor) -> Tensor:
    """What the part gives for x (T, D) and the memory (S, D) that it sees."""
    named = {f"part.{name}": p for name, p in part.named_parameters()}
    causal = isinstance(part, SelfAttention) and part.causal
    sees = reference.the_past if causal else reference.everything
    return reference.attention(x, memory, named, "part", part.n_head, sees, keep_all)


@both_directions
@pytest.mark.parametrize("n_head", [1, 2, 4, 8])
def test_forward_and_gradients_equal_loops_over_heads_and_positions(
    n_head: int, causal: bool
) -> None:
    mha = make(8, n_head, causal=causal)
    x = torch.randn(3, 6, 8, dtype=torch.float64, requires_grad=True)
    expected = torch.stack([looped(mha, row, row) for row in x])
    assert_same_derivatives(mha(x), expected, [x, *mha.parameters()])


@both_directions
@pytest.mark.parametrize("name", MASKS)
def test_content_is_computed_as_if_padding_were_not_there(name: str, causal: bool) -> None:
    mha = make(causal=causal)
    mask = torch.tensor(MASKS[name], dtype=torch.float32)
    content = mask.bool()
    x = torch.randn(1, 6, 8, dtype=torch.float64, requires_grad=True)
    ours = mha(x, mask[None])[0, content]
    expected = looped(mha, x[0, content], x[0, content])
    assert_same_derivatives(ours, expected, [x, *mha.parameters()])


@pytest.mark.parametrize("n_head", [1, 2, 4])
@pytest.mark.parametrize("mask", [None, [1, 1, 1], [0, 1, 1], [1, 0, 1], [0, 0, 0]])
def test_cross_attention_equals_loops(n_head: int, mask: list[int] | None) -> None:
    """Every query sees all content of the memory, no padding; without content it gets zeros."""
    cross = make_cross(8, n_head)
    x = torch.randn(2, 5, 8, dtype=torch.float64, requires_grad=True)
    memory = torch.randn(2, 3, 8, dtype=torch.float64, requires_grad=True)
    ours = cross(x, memory, None if mask is None else torch.tensor([mask, mask]))
    content = torch.tensor(mask or [1, 1, 1]).bool()
    expected = [looped(cross, a, m) for a, m in zip(x, memory[:, content], strict=True)]
    assert_same_derivatives(ours, torch.stack(expected), [x, memory, *cross.parameters()])
    if not content.any():
        assert torch.equal(ours, cross.proj.bias.expand(2, 5, 8))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_written_out_path_equals_fused_path(dtype: torch.dtype) -> None:
    mha = make(32, 4).to(dtype)
    x = torch.randn(2, 7, 32, dtype=dtype)
    fused, written_out = mha(x), mha(x, torch.ones(2, 7))
    tolerance = {torch.float64: 1e-13, torch.float32: 1e-6, torch.bfloat16: 2e-2}[dtype]
    torch.testing.assert_close(fused, written_out, rtol=tolerance, atol=tolerance)
    assert fused.dtype == dtype


@pytest.mark.parametrize("head_dim", [16, 128])  # below and above SLOW_CPU_HEAD_DIM
@pytest.mark.parametrize("kind", ["causal", "both ways", "cross"])
def test_autocast_attention_is_close_to_float32(head_dim: int, kind: str) -> None:
    x = torch.randn(2, 9, 2 * head_dim)
    if kind == "cross":
        part, inputs = make_cross(2 * head_dim).float(), (x, torch.randn(2, 5, 2 * head_dim))
    else:
        part, inputs = make(2 * head_dim, causal=kind == "causal").float(), (x,)
    exact = part(*inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = part(*inputs)
    assert low.dtype == torch.bfloat16
    error = (low.float() - exact).norm() / exact.norm()
    assert 0 < error < 2e-2


@both_directions
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_rows_that_see_nothing_give_zeros_and_finite_gradients(
    dtype: torch.dtype, causal: bool
) -> None:
    mha = make(causal=causal).to(dtype)
    x = torch.randn(2, 4, 8, dtype=dtype, requires_grad=True)
    mask = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
    out = mha.self_attention(*mha.q_kT_v(x), mask)
    blind = 2 if causal else 0  # padding may look at content that comes later
    assert not out[0, :blind].any()
    assert not out[1].any()
    assert out[0, blind:].abs().min() > 0
    (gradient,) = torch.autograd.grad(out.sum(), x)
    assert gradient.isfinite().all()
    assert not gradient[1].any()  # nothing that a blind row holds reaches the output


def test_blind_rows_agree_with_torch_sdpa() -> None:
    # Claim of the docstring: what torch's own math kernel does with a mask without any key.
    q = torch.randn(1, 1, 3, 4, dtype=torch.float64)
    allowed = torch.tensor([[False] * 3, [True, False, False], [True] * 3])
    with sdpa_kernel(SDPBackend.MATH):
        theirs = torch.nn.functional.scaled_dot_product_attention(q, q, q, attn_mask=allowed)
    ours = attend(q, q.transpose(-2, -1), q, allowed, 0.5)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("mask", [None, torch.ones(1, 16)])
def test_dropout_falls_on_the_weights_after_the_softmax(mask: Tensor | None) -> None:
    """With v = identity the output of a head is its weights: each is 0 or w / (1 - p)."""
    p, S = 0.3, 16
    mha = make(S, 1, p)
    q, k = torch.randn(2, 1, 1, S, S, dtype=torch.float64).unbind(0)
    v = torch.eye(S, dtype=torch.float64)[None, None]
    mha.eval()
    weights = mha.self_attention(q, k, v, mask)[0]
    mha.train()
    draws = torch.stack([mha.self_attention(q, k, v, mask)[0] for _ in range(400)])

    kept = draws != 0
    torch.testing.assert_close(draws, kept * weights / (1 - p))
    seen = torch.ones(S, S).tril().bool()
    n = 400 * int(seen.sum())
    share = kept[:, seen].double().mean()
    assert abs(share - (1 - p)) < 5 * math.sqrt(p * (1 - p) / n)
    # In expectation dropout changes nothing.
    standard_error = weights[seen] * math.sqrt(p / (1 - p) / 400)
    assert ((draws.mean(dim=0) - weights)[seen].abs() / standard_error).max() < 5


@pytest.mark.parametrize("mask", [None, torch.ones(1, 16)])
def test_cross_attention_drops_weights_and_output(mask: Tensor | None) -> None:
    """With v = x = identity and no projection, the output is the weights: 0 or w / (1 - p)²."""
    p, n = 0.3, 400
    cross = make_cross(16, 1, p)
    with torch.no_grad():
        for linear in (cross.v_attn, cross.proj):
            linear.weight.copy_(torch.eye(16))
            linear.bias.zero_()
    x = torch.randn(1, 9, 16, dtype=torch.float64)
    memory = torch.eye(16, dtype=torch.float64)[None]
    weights = cross.eval()(x, memory, mask)
    cross.train()
    draws = torch.stack([cross(x, memory, mask) for _ in range(n)])
    kept = draws != 0
    torch.testing.assert_close(draws, kept * weights / (1 - p) ** 2)
    keep = (1 - p) ** 2
    assert abs(kept.double().mean() - keep) < 5 * math.sqrt(keep * (1 - keep) / kept.numel())
