"""The schedules against their definitions and against torch's schedulers."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.support.tiny_runs import tiny_config
from trainer.optim.schedules import cosine_lr_schedule, trapezoid_lr_schedule

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


@pytest.mark.parametrize("numbers", [(-1, 5), (0, -1), (-1, 5, 1), (0, -1, 1), (0, 5, -1)])
def test_negative_steps_are_refused(numbers: tuple[int, ...]) -> None:
    schedule = cosine_lr_schedule if len(numbers) == 2 else trapezoid_lr_schedule
    with pytest.raises(ValueError, match="must not be negative"):
        schedule(*numbers, 0.0, 1.0)


@given(a=steps, b=steps, c=steps, t=st.integers(0, 1200), low=rates, high=rates)
def test_trapezoid_by_interpolation(
    a: int, b: int, c: int, t: int, low: float, high: float
) -> None:
    """Between its corners (0, 0), (a, high), (b - c, high), (b, low) it is linear."""
    lr = trapezoid_lr_schedule(a, b, c, low, high)(t)
    assert type(lr) is float
    if t < a:
        expected = high * t / a
    elif t >= b:
        expected = low
    else:
        start = max(a, b - c)
        expected = float(np.interp(t, [start, b], [high, low])) if t > start else high
    assert lr == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_cooldown_over_all_steps_is_torchs_linear_decay() -> None:
    a, b, low, high = 5, 30, 0.02, 0.4
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=high)
    warmup = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: t / a)
    decay = torch.optim.lr_scheduler.LinearLR(
        optimizer, start_factor=1.0, end_factor=low / high, total_iters=b - a
    )
    scheduler = torch.optim.lr_scheduler.SequentialLR(optimizer, [warmup, decay], [a])
    schedules = [trapezoid_lr_schedule(a, b, c, low, high) for c in (b - a, b, 1000)]
    for t in range(b):
        for get_lr in schedules:
            assert get_lr(t) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
        optimizer.step()
        scheduler.step()


def test_trapezoid_at_its_edges() -> None:
    constant = trapezoid_lr_schedule(0, 4, 0, 0.1, 1.0)
    assert [constant(t) for t in range(6)] == [1.0, 1.0, 1.0, 1.0, 0.1, 0.1]
    assert trapezoid_lr_schedule(0, 0, 0, 0.1, 1.0)(0) == 0.1
    only_warmup = trapezoid_lr_schedule(4, 4, 2, 0.1, 1.0)
    assert [only_warmup(t) for t in range(6)] == [0.0, 0.25, 0.5, 0.75, 0.1, 0.1]
    assert [type(trapezoid_lr_schedule(2, 6, 2, 0, 1)(t)) for t in range(8)] == [float] * 8


def test_the_schedule_of_a_configuration() -> None:
    """20 steps, 3 of warm-up, from 0.01 to 0.001."""

    def rates_of(**changes: object) -> list[float]:
        get_lr = tiny_config(**changes).lr_schedule()
        return [get_lr(t) for t in range(21)]

    warmup = [0.0, 0.01 / 3, 0.02 / 3]
    cosine = cosine_lr_schedule(3, 20, 1e-3, 1e-2)
    assert rates_of() == [cosine(t) for t in range(21)]
    line = [1e-3 + 9e-3 * (20 - t) / 17 for t in range(3, 21)]
    assert rates_of(schedule="linear") == pytest.approx(warmup + line)
    halves = [*([1e-2] * 7), *(1e-3 + 9e-3 * (20 - t) / 10 for t in range(10, 21))]
    assert rates_of(schedule="wsd") == pytest.approx(warmup + halves)
    fifth = [*([1e-2] * 13), *(1e-3 + 9e-3 * (20 - t) / 4 for t in range(16, 21))]
    assert rates_of(schedule="wsd", cooldown_fraction=0.2) == pytest.approx(warmup + fifth)
    everything = rates_of(schedule="wsd", cooldown_fraction=1.0)
    assert everything == rates_of(schedule="linear")
    to_zero = rates_of(schedule="linear", min_lr_ratio=0.0, num_warmup_steps=0)
    assert to_zero == pytest.approx([1e-2 * (20 - t) / 20 for t in range(21)])
