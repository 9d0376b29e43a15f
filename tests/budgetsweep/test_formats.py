import datetime as dt
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from budgetsweep import formats

NUMBERS = (
    formats.whole, formats.count, formats.flops, formats.rate, formats.loss, formats.perplexity,
    formats.percent, formats.times, formats.duration, formats.gib,
)  # fmt: skip


@pytest.mark.parametrize("show", NUMBERS)
@pytest.mark.parametrize("value", [None, math.nan, math.inf, -math.inf])
def test_what_is_missing_is_a_dash(show, value):
    assert show(value) == formats.DASH


@pytest.mark.parametrize("show", NUMBERS)
@given(value=st.floats(0, 1e30))
def test_every_number_is_shown_as_one_and_never_ends_in_a_point(show, value):
    text = show(value)
    assert any(character.isdigit() for character in text)
    assert not text.endswith(".")
    assert "nan" not in text


@given(st.floats(1e-30, 1e30))
def test_flops_and_rates_read_back_to_three_digits(value):
    for show in (formats.flops, formats.rate):
        assert float(show(value)) == pytest.approx(value, rel=6e-3)


@given(st.floats(1, 9e14))
def test_counts_read_back_to_three_digits(value):
    number, _, unit = formats.count(value).partition(" ")
    factor = {"": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}[unit]
    assert float(number) * factor == pytest.approx(value, rel=6e-3)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"), (9.94, "9.9 s"), (59.9, "60 s"), (59.96, "1 min"), (200, "3 min 20 s"),
        (3599.7, "1 h"), (7500, "2 h 5 min"), (90_000, "1 d 1 h"),
    ],
)  # fmt: skip
def test_durations(seconds, text):
    assert formats.duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1e-3, "0.001"), (0.0123, "0.0123"), (3e-4, "3e-4"), (0, "0"), (128, "128"),
        (True, "true"), (None, "–"), ("fill", "fill"), (4096, "4,096"), (0.1, "0.1"),
    ],
)  # fmt: skip
def test_settings(value, text):
    assert formats.setting(value) == text


def test_perplexities():
    assert [formats.perplexity(v) for v in (34.2345, 265.94, 999.97, 1373.4, 2.5e7)] == [
        "34.23", "265.9", "1,000", "1,373", "2.5e7",
    ]  # fmt: skip


def test_percent():
    assert [formats.percent(v) for v in (0, 0.0004, 0.012, 0.5, 1)] == [
        "0 %", "< 0.1 %", "1.2 %", "50 %", "100 %",
    ]  # fmt: skip


def test_moments_are_utc():
    berlin = dt.timezone(dt.timedelta(hours=2))
    assert formats.moment(dt.datetime(2026, 7, 1, 1, 30, tzinfo=berlin)) == "2026-06-30 23:30 UTC"
    assert formats.moment(None) == "–"


def test_plural():
    assert [formats.plural(n, "trial") for n in (0, 1, 2)] == ["no trials", "1 trial", "2 trials"]
