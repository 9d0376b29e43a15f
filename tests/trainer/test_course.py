"""The course's training functions, more strictly than the course tests them."""

import itertools
import math
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from budgetsweep.errors import DataError, NonFiniteLoss
from model import DecoderLM
from trainer import (
    compute_language_modeling_loss,
    cosine_lr_schedule,
    evaluate,
    random_batch_sampler,
    sequential_batch_sampler,
    train,
)

pytestmark = pytest.mark.usefixtures("one_thread")
V = 11


def make_model(p_dropout: float = 0.0) -> DecoderLM:
    torch.manual_seed(0)
    return DecoderLM(V, 8, 2, 6, 1, p_dropout).double()


def forms_of(ids: list[int], folder: Path) -> dict[str, Any]:
    on_disk = np.memmap(folder / "tokens.bin", dtype=np.uint16, mode="w+", shape=(len(ids),))
    on_disk[:] = ids
    return {
        "list": ids,
        "int64 array": np.array(ids),
        "uint16 array": np.array(ids, dtype=np.uint16),
        "memmap": on_disk,
        "int64 tensor": torch.tensor(ids),
        "int32 tensor": torch.tensor(ids, dtype=torch.int32),
        "uint16 tensor": torch.tensor(ids, dtype=torch.uint16),
    }


def test_samplers_take_any_kind_of_tokens(tmp_path: Path) -> None:
    ids = [*range(100, 120), 65535 - 40_000]
    for name, tokens in forms_of(ids, tmp_path).items():
        batch = next(random_batch_sampler(tokens, "cpu", 4, 3))
        assert (batch.dtype, batch.shape, batch.device.type) == (torch.int64, (4, 3), "cpu"), name
        for row in batch.tolist():
            start = ids.index(row[0])
            assert row == ids[start : start + 3], name
        batches = list(sequential_batch_sampler(tokens, torch.device("cpu"), 2, 5))
        assert [batch.tolist() for batch in batches] == [
            [ids[0:5], ids[5:10]],
            [ids[10:15], ids[15:20]],
        ], name


def test_random_starts_are_uniform_from_first_to_last() -> None:
    n, seq_len, draws = 12, 5, 6000
    torch.manual_seed(1)
    sampler = random_batch_sampler(np.arange(n), "cpu", 60, seq_len)
    starts = torch.cat([next(sampler)[:, 0] for _ in range(draws // 60)])
    counts = torch.bincount(starts, minlength=n)
    assert counts[n - seq_len + 1 :].sum() == 0
    expected = draws / (n - seq_len + 1)
    chi2 = (((counts[: n - seq_len + 1] - expected) ** 2) / expected).sum()
    assert chi2 < 29.9  # 7 degrees of freedom, p = 1e-4


def test_random_batches_follow_their_generator() -> None:
    def first(seed: int) -> list[list[int]]:
        generator = torch.Generator().manual_seed(seed)
        sampler = random_batch_sampler(np.arange(1000), "cpu", 8, 2, generator=generator)
        return next(sampler).tolist()

    assert first(3) == first(3) != first(4)


def test_exactly_one_window_is_enough_and_less_is_an_error() -> None:
    assert next(random_batch_sampler([1, 2, 3], "cpu", 2, 3)).tolist() == [[1, 2, 3], [1, 2, 3]]
    with pytest.raises(DataError, match="2 tokens are fewer than one window of seq_len = 3"):
        random_batch_sampler([1, 2], "cpu", 1, 3)
    with pytest.raises(ValueError, match="one dimension"):
        random_batch_sampler(np.zeros((2, 2)), "cpu", 1, 1)
    with pytest.raises(ValueError, match="batch_size = 0"):
        sequential_batch_sampler([1, 2], "cpu", 0, 1)


@given(n=st.integers(0, 80), batch=st.integers(1, 6), seq_len=st.integers(1, 12))
def test_sequential_batches_are_the_tokens_in_order(n: int, batch: int, seq_len: int) -> None:
    batches = list(sequential_batch_sampler(np.arange(n), "cpu", batch, seq_len))
    assert len(batches) == n // (batch * seq_len)
    assert all(b.shape == (batch, seq_len) for b in batches)
    walked = [token for b in batches for token in b.flatten().tolist()]
    assert walked == list(range(len(walked)))


def test_loss_is_the_mean_surprise_at_the_next_token() -> None:
    torch.manual_seed(0)
    ids = torch.randint(V, (3, 5))
    logits = torch.randn(3, 5, V, dtype=torch.float64)
    p = np.exp(logits.numpy()) / np.exp(logits.numpy()).sum(axis=-1, keepdims=True)
    surprises = [-math.log(p[b, t, ids[b, t + 1]]) for b in range(3) for t in range(4)]
    loss = compute_language_modeling_loss(ids, logits)
    assert loss.shape == ()
    assert loss.item() == pytest.approx(sum(surprises) / 12, rel=1e-12)
    low = logits.bfloat16()
    assert compute_language_modeling_loss(ids, low).dtype == torch.float32
    assert compute_language_modeling_loss(ids, low).item() == pytest.approx(loss.item(), rel=1e-2)


def batches(n: int, batch: int = 4, seed: int = 5) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(V, (batch, 6), generator=generator) for _ in range(n)]


def constant(lr: float) -> Callable[[int], float]:
    return lambda t: lr


def trained(model: DecoderLM, data: list[Tensor], steps: int, **settings: Any) -> list[float]:
    """The losses of so many steps of AdamW with one learning rate."""
    optimizer = torch.optim.AdamW(model.parameters())
    return train(model, iter(data), optimizer, constant(0.01), num_training_steps=steps, **settings)


def assert_equal_weights(ours: DecoderLM, theirs: DecoderLM, rtol: float, atol: float) -> None:
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=atol)


def test_train_is_gradient_descent_with_the_scheduled_rates() -> None:
    """With plain SGD the weights follow from the gradients alone: nothing stays from before."""
    model, twin = make_model(), make_model()
    schedule = cosine_lr_schedule(2, 5, 0.01, 0.5)
    losses = train(
        model,
        iter(batches(6)),
        torch.optim.SGD(model.parameters(), lr=123.0),
        schedule,
        nullcontext(),
        6,
        1,
    )
    for t, ids in enumerate(batches(6)):
        loss = compute_language_modeling_loss(ids, twin(ids))
        assert losses[t] == pytest.approx(loss.item(), rel=1e-12)
        gradients = torch.autograd.grad(loss, list(twin.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(twin.parameters(), gradients, strict=True):
                parameter -= schedule(t) * gradient
    assert_equal_weights(model, twin, 1e-12, 1e-14)


@pytest.mark.parametrize("k", [2, 3])
def test_accumulated_micro_batches_equal_the_large_batch(k: int) -> None:
    small, large = make_model(), make_model()
    parts = batches(3 * k)
    wholes = [torch.cat(parts[i : i + k]) for i in range(0, 3 * k, k)]
    losses = trained(small, parts, 3, grad_accumulation_steps=k)
    assert losses == pytest.approx(trained(large, wholes, 3), rel=1e-12)
    assert_equal_weights(small, large, 1e-9, 1e-12)


def test_train_takes_no_more_batches_than_it_needs() -> None:
    model = make_model()
    sampler = iter(batches(7))
    optimizer = torch.optim.SGD(model.parameters())
    train(model, sampler, optimizer, constant(0.1), num_training_steps=2, grad_accumulation_steps=3)
    assert len(list(sampler)) == 1
    before = [p.clone() for p in model.parameters()]
    assert train(model, sampler, optimizer, constant(0.1)) == []
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_stale_gradients_do_not_count() -> None:
    model, twin = make_model(), make_model()
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 100.0)
    for each in (model, twin):
        trained(each, batches(1), 1)
    assert_equal_weights(model, twin, 0.0, 0.0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("micro", [0, 1])
def test_a_broken_loss_stops_before_the_update(bad: float, micro: int) -> None:
    model = make_model()
    calls = itertools.count()
    seen: list[list[Tensor]] = []

    def breaks(module: DecoderLM, args: Any, output: Tensor) -> Tensor:
        if next(calls) == 2 * 2 + micro:  # third step, two micro-batches a step
            seen.append([p.detach().clone() for p in module.parameters()])
            return output * bad
        return output

    model.register_forward_hook(breaks)
    with pytest.raises(NonFiniteLoss, match=r"training loss became \S+ at step 3$") as caught:
        trained(model, batches(10), 5, grad_accumulation_steps=2)
    assert caught.value.step == 3
    assert all(torch.equal(a, b) for a, b in zip(seen[0], model.parameters(), strict=True))


def test_too_few_batches_is_a_clear_error() -> None:
    with pytest.raises(DataError, match="ran out of batches in step 3"):
        trained(make_model(), batches(2), 4)


def test_training_learns_and_autocast_reaches_the_model() -> None:
    torch.manual_seed(0)
    model = DecoderLM(V, 16, 2, 8, 1, 0.0)
    seen: set[torch.dtype] = set()
    model.register_forward_hook(lambda module, args, output: seen.add(output.dtype))
    tokens = list(range(V)) * 20  # each token decides the next
    sampler = random_batch_sampler(tokens, "cpu", 8, 8)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.0)
    losses = train(
        model,
        sampler,
        optimizer,
        cosine_lr_schedule(5, 60, 1e-3, 3e-2),
        torch.autocast("cpu", dtype=torch.bfloat16),
        60,
    )
    assert losses[0] == pytest.approx(math.log(V), abs=0.1)
    assert losses[-1] < 0.3
    assert seen == {torch.bfloat16}
    result = evaluate(model, sequential_batch_sampler(tokens, "cpu", 4, 8))
    assert result["val-loss"] < 0.3


def test_evaluate_is_the_mean_loss_without_dropout() -> None:
    model = make_model(p_dropout=0.5)
    data = batches(3)
    result = evaluate(model, iter(data))
    assert model.training
    model.eval()
    losses = [compute_language_modeling_loss(ids, model(ids)).item() for ids in data]
    assert set(result) == {"val-loss", "val-perplexity"}
    assert all(type(value) is float for value in result.values())
    assert result["val-loss"] == pytest.approx(sum(losses) / 3, rel=1e-12)
    assert result["val-perplexity"] == pytest.approx(math.exp(sum(losses) / 3), rel=1e-12)
    assert evaluate(model, data) == result
    assert not model.training
    assert all(p.grad is None for p in model.parameters())


def test_evaluate_without_a_batch_is_a_clear_error() -> None:
    model = make_model()
    with pytest.raises(DataError, match="no full batch to evaluate on"):
        evaluate(model, sequential_batch_sampler([1] * 11, "cpu", 2, 6))
    assert model.training


def test_train_leaves_evaluation_mode_behind() -> None:
    model = make_model(p_dropout=0.5).eval()
    trained(model, batches(1), 1)
    assert model.training
