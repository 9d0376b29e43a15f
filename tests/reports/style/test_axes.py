import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from reports.style.axes import log_ticks, loss_limits, nats, padded_log_limits

positive = st.floats(1e-9, 1e20)


@given(low=positive, factor=st.floats(1.001, 1e25), most=st.integers(3, 9))
@example(low=1.6, factor=1.001953125, most=3)
def test_log_ticks_are_few_inside_and_ascending(low, factor, most):
    high = low * factor
    ticks = log_ticks(low, high, most)
    assert len(ticks) <= most
    assert all(low * (1 - 1e-9) <= tick <= high * (1 + 1e-9) for tick in ticks)
    assert ticks == sorted(set(ticks))


@given(low=positive, factor=st.floats(1.3, 1e25))
def test_there_are_always_two_log_ticks_to_read_a_scale_from(low, factor):
    assert len(log_ticks(low, low * factor)) >= 2


@given(low=st.floats(1e-3, 1e6), decades=st.integers(3, 12))
def test_wide_log_axes_have_whole_powers(low, decades):
    for tick in log_ticks(low, low * 10**decades, 4):
        assert math.log10(tick) == pytest.approx(round(math.log10(tick)), abs=1e-9)


@given(st.lists(positive, min_size=1, max_size=20))
def test_log_limits_leave_a_margin(values):
    low, high = padded_log_limits(values)
    assert 0 < low < min(values)
    assert high > max(values)


@given(st.lists(st.floats(0.5, 12), min_size=1, max_size=60))
def test_the_best_loss_and_three_quarters_of_all_are_in_the_frame(losses):
    low, high = loss_limits(losses)
    assert low < min(losses) < high
    assert np.mean(np.array(losses) <= high) >= 0.75


def test_an_outlier_does_not_flatten_the_rest():
    losses = [*np.linspace(5.0, 5.4, 20), 11.0]
    low, high = loss_limits(losses)
    assert high - low < 2.0


@pytest.mark.parametrize(("value", "text"), [(5.0, "5"), (5.25, "5.25"), (0.5, "0.5"), (10, "10")])
def test_ticks_of_losses(value, text):
    assert nats(value) == text
