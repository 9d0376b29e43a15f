"""The sampled loss against the full one, numerical gradients and its bad input."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.sampled_softmax import VocabularySample, sampled_cross_entropy


def inputs(n: int, d: int, v: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    torch.manual_seed(n * 1000 + v)
    hidden = torch.randn(n, d, dtype=dtype).requires_grad_()
    weight = torch.randn(v, d, dtype=dtype).requires_grad_()
    return hidden, weight, torch.randint(v, (n,)), torch.randn(v, dtype=dtype)


def written_out(
    hidden: Tensor, weight: Tensor, targets: Tensor, sample: VocabularySample, bias: Tensor | None
) -> Tensor:
    """log of the estimated sum, token by token, less the target's logit."""
    logits = F.linear(hidden, weight, bias)
    losses = []
    for row, target in zip(logits, targets.tolist(), strict=True):
        others = [i for i in sample.entries.tolist() if i != target]
        weighted = row[others] - sample.log_inclusion[others].to(row.dtype)
        losses.append(torch.cat((weighted, row[target][None])).logsumexp(0) - row[target])
    return torch.stack(losses).mean()


@settings(max_examples=60)
@given(
    n=st.integers(1, 12),
    d=st.integers(1, 5),
    v=st.integers(2, 20),
    chunk=st.integers(1, 15),
    biased=st.booleans(),
    data=st.data(),
)
def test_equals_the_estimate_written_out(n, d, v, chunk, biased, data) -> None:
    hidden, weight, targets, bias = inputs(n, d, v)
    ids = data.draw(st.lists(st.integers(0, v - 1), min_size=1, max_size=v, unique=True))
    chances = data.draw(st.lists(st.floats(0.01, 1.0), min_size=v, max_size=v))
    sample = VocabularySample(torch.tensor(sorted(ids)), torch.tensor(chances).log())
    bias = bias if biased else None
    ours = sampled_cross_entropy(hidden, weight, targets, sample, bias, chunk)
    theirs = written_out(hidden, weight, targets, sample, bias)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    for a, b in zip(
        torch.autograd.grad(3 * ours, (hidden, weight)),
        torch.autograd.grad(3 * theirs, (hidden, weight)),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


def test_with_all_ids_it_is_the_full_loss() -> None:
    hidden, weight, targets, bias = inputs(30, 6, 17)
    everything = VocabularySample(torch.arange(17), torch.zeros(17))
    ours = sampled_cross_entropy(hidden, weight, targets, everything, bias)
    full = F.cross_entropy(F.linear(hidden, weight, bias), targets)
    torch.testing.assert_close(ours, full, rtol=1e-12, atol=1e-12)


def test_the_estimated_sum_is_unbiased() -> None:
    """Over every possible sample of independent draws, its mean is the sum over the vocabulary."""
    hidden, weight, _, _ = inputs(1, 3, 6)
    chances, target = torch.tensor([0.9, 0.2, 0.5, 1.0, 0.7, 0.4]), torch.tensor([4])
    mean = 0.0
    for number in range(2**6):
        drawn = torch.tensor([bool(number >> i & 1) for i in range(6)])
        likely = float(torch.where(drawn, chances, 1 - chances).double().prod())
        if likely == 0 or not drawn.any():
            continue
        sample = VocabularySample(drawn.nonzero().squeeze(1), chances.log())
        loss = sampled_cross_entropy(hidden, weight, target, sample)
        right = (hidden @ weight.T)[0, 4].detach()
        mean += likely * float((loss.detach() + right).exp())
    assert mean == pytest.approx(float((hidden @ weight.T).exp().sum().detach()), rel=1e-6)


def test_bf16_autocast_is_within_bf16_rounding() -> None:
    hidden, weight, targets, bias = inputs(256, 32, 400, torch.float32)
    sample = VocabularySample(torch.arange(0, 400, 3), torch.full((400,), -1.0986123))
    exact = written_out(hidden.double(), weight.double(), targets, sample, bias.double())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = sampled_cross_entropy(hidden, weight, targets, sample, bias, 100)
    assert ours.dtype == torch.float32
    assert abs(ours - exact) < 5e-3
    for a, b in zip(
        torch.autograd.grad(ours, (hidden, weight)),
        torch.autograd.grad(exact, (hidden, weight)),
        strict=True,
    ):
        assert a.dtype == torch.float32
        assert (a - b).norm() < 2e-2 * b.norm()


@pytest.mark.parametrize("size", [200.0, 1e4])
def test_large_logits_neither_overflow_nor_saturate(size: float) -> None:
    hidden = torch.eye(2).requires_grad_()
    weight = torch.tensor([[size, 0.0], [-size, 1.0], [0.0, 2.0]])
    sample = VocabularySample(torch.tensor([0, 2]), torch.zeros(3))
    loss = sampled_cross_entropy(hidden, weight, torch.tensor([1, 2]), sample)
    assert loss.item() == pytest.approx((2 * size + 0.1269) / 2, rel=1e-3)
    assert torch.autograd.grad(loss, hidden)[0].isfinite().all()


def test_a_broken_weight_gives_a_loss_that_is_not_finite() -> None:
    hidden, weight, targets, _ = inputs(5, 3, 7)
    with torch.no_grad():
        hidden[2, 1] = float("nan")
    sample = VocabularySample(torch.arange(3), torch.zeros(7))
    assert not sampled_cross_entropy(hidden, weight, targets, sample).isfinite()


def test_what_does_not_fit_is_refused() -> None:
    hidden, weight, targets, bias = inputs(5, 3, 7)
    sample = VocabularySample(torch.arange(3), torch.zeros(7))
    for change in (
        {"hidden": hidden[:, :2]},
        {"targets": targets[:4]},
        {"hidden": hidden[:0], "targets": targets[:0]},
        {"sample": VocabularySample(torch.arange(0), torch.zeros(7))},
        {"sample": VocabularySample(torch.arange(3), torch.zeros(6))},
        {"bias": bias[:6]},
    ):
        given = {"hidden": hidden, "weight": weight, "targets": targets, "sample": sample}
        with pytest.raises(ValueError, match=r"expected \((N, D\), \(V, D|K,|V,)\)"):
            sampled_cross_entropy(**{**given, **change})
