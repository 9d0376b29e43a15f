"""The cosine schedule against its definition and against torch's schedulers."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainer.schedule import cosine_lr_schedule

rates = st.floats(0.0, 1.0, allow_subnormal=False)
steps = st.integers(0, 500)


@given(a=steps, b=steps, t=st.integers(0, 1200), low=rates, high=rates)
def test_definition(a: int, b: int, t: int, low: float, high: float) -> None:
    lr = cosine_lr_schedule(a, b, low, high)(t)
    if t < a:
        expected = high * t / a
    elif t < b:
        # Half a cosine by the half-angle formula.
        angle = math.pi / 2 * (t - a) / (b - a)
        expected = high * math.cos(angle) ** 2 + low * math.sin(angle) ** 2
    else:
        expected = low
    assert type(lr) is float
    assert lr == pytest.approx(expected, rel=1e-9, abs=1e-12)


@given(a=steps, extra=st.integers(1, 500), low=rates, high=rates)
def test_rises_then_falls_between_its_bounds(a: int, extra: int, low: float, high: float) -> None:
    low, high = sorted((low, high))
    b = a + extra
    get_lr = cosine_lr_schedule(a, b, low, high)
    values = [get_lr(t) for t in range(b + 3)]
    assert all(x <= y for x, y in itertools.pairwise(values[: a + 1]))
    assert all(x >= y - 1e-15 for x, y in itertools.pairwise(values[a:]))
    assert values[a] == pytest.approx(high, rel=1e-12)
    assert values[0] == (pytest.approx(high) if a == 0 else 0.0)
    assert values[b:] == [low] * 3


def test_equals_torch_schedulers() -> None:
    a, b, low, high = 7, 40, 0.01, 0.3
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=high)
    warmup = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: t / a)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=b - a, eta_min=low)
    scheduler = torch.optim.lr_scheduler.SequentialLR(optimizer, [warmup, cosine], [a])
    get_lr = cosine_lr_schedule(a, b, low, high)
    for t in range(b):
        assert get_lr(t) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
        optimizer.step()
        scheduler.step()


def test_no_warm_up_and_nothing_but_warm_up() -> None:
    assert cosine_lr_schedule(0, 10, 0.1, 1.0)(0) == 1.0
    only_warmup = cosine_lr_schedule(4, 4, 0.1, 1.0)
    assert [only_warmup(t) for t in range(6)] == [0.0, 0.25, 0.5, 0.75, 0.1, 0.1]
    assert cosine_lr_schedule(0, 0, 0.1, 1.0)(0) == 0.1


def test_whole_number_rates_give_floats() -> None:
    get_lr = cosine_lr_schedule(2, 4, 0, 1)
    assert [type(get_lr(t)) for t in range(6)] == [float] * 6


@pytest.mark.parametrize(("a", "b"), [(-1, 5), (0, -1)])
def test_negative_steps_are_refused(a: int, b: int) -> None:
    with pytest.raises(ValueError, match="must not be negative"):
        cosine_lr_schedule(a, b, 0.0, 1.0)
