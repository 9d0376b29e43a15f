"""The chunked loss against F.cross_entropy, numerical gradients and its promise on memory."""

import subprocess
import sys
import weakref
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from model import loss as loss_module
from model.loss import linear_cross_entropy, token_losses


def inputs(
    n: int = 11, d: int = 5, v: int = 13, scale: float = 1.0, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(n * 1000 + v)
    hidden = (scale * torch.randn(n, d, dtype=dtype)).requires_grad_()
    weight = torch.randn(v, d, dtype=dtype).requires_grad_()
    return hidden, weight, torch.randint(v, (n,))


def gradients(loss: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, tensors)


@pytest.fixture(params=["unshifted", "softmax"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to the probabilities: exp of small logits, and softmax for any."""
    if request.param == "softmax":
        monkeypatch.setattr(loss_module, "SAFE_LOGIT", 0.0)
    return request.param


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 20),
    d=st.integers(1, 6),
    v=st.integers(1, 30),
    chunk=st.integers(1, 25),
    scale=st.sampled_from([0.1, 1.0, 5.0, 100.0]),
    bias_scale=st.sampled_from([None, 0.0, 1.0, 5.0, 100.0]),
)
def test_equals_cross_entropy_in_float64(
    n: int, d: int, v: int, chunk: int, scale: float, bias_scale: float | None
) -> None:
    hidden, weight, targets = inputs(n, d, v, scale)
    bias = None if bias_scale is None else bias_scale * torch.randn(v, dtype=torch.float64)
    logits = F.linear(hidden, weight, bias)
    ours = linear_cross_entropy(hidden, weight, targets, chunk, bias)
    theirs = F.cross_entropy(logits, targets)
    torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)
    for a, b in zip(
        gradients(3 * ours, hidden, weight), gradients(3 * theirs, hidden, weight), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    each = F.cross_entropy(logits, targets, reduction="none")
    torch.testing.assert_close(
        token_losses(hidden, weight, targets, chunk, bias), each.detach(), rtol=1e-11, atol=1e-11
    )


def test_float32_is_as_exact_as_cross_entropy(path: str) -> None:
    hidden, weight, targets = inputs(64, 16, 300, dtype=torch.float32)
    exact = F.cross_entropy(hidden.double() @ weight.double().T, targets)
    ours = linear_cross_entropy(hidden, weight, targets, 10)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours.double(), exact, rtol=1e-6, atol=0)
    for a, b in zip(gradients(ours, hidden, weight), gradients(exact, hidden, weight), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("biased", [False, True])
def test_bf16_autocast_is_within_bf16_rounding(path: str, biased: bool) -> None:
    """No further from the truth than autocast's own linear + cross-entropy."""
    hidden, weight, targets = inputs(512, 32, 400, scale=0.5, dtype=torch.float32)
    bias = 3 * torch.randn(400) - 4 if biased else None
    exact = F.cross_entropy(
        F.linear(hidden.double(), weight.double(), None if bias is None else bias.double()), targets
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = linear_cross_entropy(hidden, weight, targets, 100, bias)
        theirs = F.cross_entropy(F.linear(hidden, weight, bias), targets)
        each = token_losses(hidden, weight, targets, 100, bias)
    assert ours.dtype == each.dtype == torch.float32
    assert abs(ours - exact) < 1e-3
    assert abs(each.double().mean() - exact) < 1e-3
    for a, b, true in zip(
        gradients(ours, hidden, weight),
        gradients(theirs, hidden, weight),
        gradients(exact, hidden, weight),
        strict=True,
    ):
        assert a.dtype == torch.float32
        our_error, their_error = (a - true).norm() / true.norm(), (b - true).norm() / true.norm()
        assert our_error < 1e-2
        assert our_error < 1.5 * their_error


def test_token_losses_under_autocast_keep_a_float32_softmax() -> None:
    hidden, weight, targets = inputs(40, 8, 500, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        each = token_losses(hidden, weight, targets, 7)
        logits = F.linear(hidden, weight)
    expected = F.cross_entropy(logits.double(), targets, reduction="none")
    torch.testing.assert_close(each.double(), expected.detach(), rtol=1e-5, atol=1e-5)


def test_pure_bf16_without_autocast() -> None:
    hidden, weight, targets = inputs(32, 8, 50, dtype=torch.bfloat16)
    ours = linear_cross_entropy(hidden, weight, targets, 10)
    assert ours.dtype == torch.float32
    exact = F.cross_entropy(hidden.double() @ weight.double().T, targets)
    assert abs(ours - exact) < 1e-2
    for a, b in zip(gradients(ours, hidden, weight), gradients(exact, hidden, weight), strict=True):
        assert a.dtype == torch.bfloat16
        assert (a.double() - b.double()).norm() < 2e-2 * b.double().norm()


@pytest.mark.parametrize("size", [50.0, 200.0, 1e4])
def test_large_logits_neither_overflow_nor_saturate(size: float) -> None:
    """A run that blows up must show its true loss, not the largest that exp can express."""
    hidden = torch.eye(3).requires_grad_()
    weight = torch.tensor([[size, 0.0, 0.0], [-size, 1.0, 0.0], [0.0, 0.0, 1.0]])
    targets = torch.tensor([1, 0, 2])
    each = F.cross_entropy(weight.T.double(), targets, reduction="none")
    ours = linear_cross_entropy(hidden, weight, targets)
    torch.testing.assert_close(ours.double(), each.mean(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(token_losses(hidden, weight, targets).double(), each)
    assert gradients(ours, hidden)[0].isfinite().all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_broken_weight_gives_a_loss_that_is_not_finite(bad: float) -> None:
    hidden, weight, targets = inputs(dtype=torch.float32)
    with torch.no_grad():
        hidden[3, 2] = bad
    assert not linear_cross_entropy(hidden, weight, targets).isfinite()
    assert not token_losses(hidden, weight, targets).isfinite().all()


def test_only_the_needed_graph() -> None:
    hidden, weight, targets = inputs()
    (d_hidden,) = gradients(linear_cross_entropy(hidden, weight.detach(), targets), hidden)
    (d_weight,) = gradients(linear_cross_entropy(hidden.detach(), weight, targets), weight)
    expected = gradients(F.cross_entropy(hidden @ weight.T, targets), hidden, weight)
    torch.testing.assert_close((d_hidden, d_weight), expected)
    with torch.no_grad():
        value = linear_cross_entropy(hidden, weight, targets)
    assert not value.requires_grad
    torch.testing.assert_close(value, F.cross_entropy(hidden @ weight.T, targets).detach())


class LargeTensors(TorchDispatchMode):
    """Follows every storage of at least `size` elements: how many are alive at once at most."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.alive: dict[int, Any] = {}
        self.most = 0
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                elements = storage.nbytes() // tensor.element_size()
                self.largest = max(self.largest, elements)
                if elements >= self.size:
                    self.alive[storage._cdata] = weakref.ref(storage)
        self.alive = {key: ref for key, ref in self.alive.items() if ref() is not None}
        self.most = max(self.most, len(self.alive))
        return out


@pytest.mark.parametrize("low", [False, True])
def test_never_more_than_one_chunk_of_logits(low: bool, path: str) -> None:
    N, D, V, chunk = 64, 2, 1000, 16
    hidden, weight, targets = inputs(N, D, V, dtype=torch.float32)
    with (
        LargeTensors(chunk * V) as tensors,
        torch.autocast("cpu", dtype=torch.bfloat16, enabled=low),
    ):
        linear_cross_entropy(hidden, weight, targets, chunk).backward()
    assert tensors.largest == chunk * V
    assert tensors.most == 1


@pytest.mark.parametrize(
    ("h", "w", "t"),
    [
        ((3, 4), (5, 4), (2,)),
        ((3, 4), (5, 3), (3,)),
        ((1, 3, 4), (5, 4), (3,)),
        ((0, 4), (5, 4), (0,)),
    ],
)
def test_shapes_that_do_not_fit(h: tuple[int, ...], w: tuple[int, ...], t: tuple[int, ...]) -> None:
    for function in (linear_cross_entropy, token_losses):
        with pytest.raises(ValueError, match=r"expected \(N, D\), \(V, D\) and \(N,\)"):
            function(torch.zeros(h), torch.zeros(w), torch.zeros(t, dtype=torch.int64))


@pytest.mark.parametrize("target", [-1, -100, 13])
def test_a_target_outside_the_vocabulary_is_an_error(target: int) -> None:
    hidden, weight, targets = inputs()
    targets[4] = target
    for function in (linear_cross_entropy, token_losses):
        with pytest.raises((IndexError, RuntimeError)):
            function(hidden, weight, targets)
    with pytest.raises(ValueError, match="chunk_tokens = 0"):
        linear_cross_entropy(*inputs(), 0)


COMPILED = """
import torch
from model.loss import linear_cross_entropy
torch.manual_seed(0)
hidden = torch.randn(50, 8, requires_grad=True)
weight = torch.randn(40, 8, requires_grad=True)
targets = torch.randint(40, (50,))
def scaled_loss(h, w, t):
    return linear_cross_entropy(2 * h, w, t, 32)
results = []
for function in (scaled_loss, torch.compile(scaled_loss, backend="aot_eager", fullgraph=True)):
    loss = function(hidden, weight, targets)
    results.append((loss, *torch.autograd.grad(loss, (hidden, weight))))
torch.testing.assert_close(*results)
"""


@pytest.mark.slow
def test_torch_compile_takes_it_as_one_graph() -> None:
    # In a process of its own: importing the compiler warns, and warnings are errors here.
    result = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.fixture
def two_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """The vocabulary is shared by two threads, however small it is."""
    monkeypatch.setattr(loss_module, "LEAST_SHARED_LOGITS", 0)
    monkeypatch.setattr(loss_module, "team_size", lambda _: 2)


@pytest.mark.parametrize("n_vocab", [65, 128, 200])
@pytest.mark.parametrize("biased", [False, True])
def test_shares_of_the_vocabulary_add_up(two_threads: None, n_vocab: int, biased: bool) -> None:
    hidden, weight, targets = inputs(40, 6, n_vocab)
    bias = torch.randn(n_vocab, dtype=torch.float64) if biased else None
    logits = F.linear(hidden, weight, bias)
    theirs = F.cross_entropy(logits, targets)
    ours = linear_cross_entropy(hidden, weight, targets, 7, bias)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    for factor in (1, 3):
        for a, b in zip(
            gradients(
                factor * linear_cross_entropy(hidden, weight, targets, 7, bias), hidden, weight
            ),
            gradients(factor * F.cross_entropy(logits, targets), hidden, weight),
            strict=True,
        ):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
        logits = F.linear(hidden, weight, bias)
        ours = linear_cross_entropy(hidden, weight, targets, 7, bias)
    each = F.cross_entropy(logits, targets, reduction="none").detach()
    torch.testing.assert_close(token_losses(hidden, weight, targets, 7, bias), each)


def test_shares_are_used_and_give_the_same_every_time(
    two_threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden, weight, targets = inputs(64, 8, 300, dtype=torch.float32)
    sizes = []
    run_on_threads = loss_module.run_on_threads

    def counted(function: Any, members: Any, *args: Any) -> Any:
        sizes.append(len(members))
        return run_on_threads(function, members, *args)

    monkeypatch.setattr(loss_module, "run_on_threads", counted)
    results = []
    for _ in range(3):
        with torch.autocast("cpu", torch.bfloat16):
            loss = linear_cross_entropy(hidden, weight, targets, 20)
        results.append((loss, *gradients(loss, hidden, weight)))
    assert set(sizes) == {2}
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("target", [-1, 200])
def test_shares_refuse_a_target_outside_the_vocabulary(two_threads: None, target: int) -> None:
    hidden, weight, targets = inputs(10, 4, 200)
    targets[3] = target
    for function in (linear_cross_entropy, token_losses):
        with pytest.raises(IndexError, match="not among the 200 entries"):
            function(hidden, weight, targets)
