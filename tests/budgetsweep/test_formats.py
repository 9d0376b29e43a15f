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
BERLIN = dt.timezone(dt.timedelta(hours=2))


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
    ("show", "texts"),
    [
        (formats.duration, {
            0: "0.0 s", 9.94: "9.9 s", 59.9: "60 s", 59.96: "1 min", 200: "3 min 20 s",
            3599.7: "1 h", 7500: "2 h 5 min", 90_000: "1 d 1 h",
        }),
        (formats.setting, {
            1e-3: "0.001", 0.0123: "0.0123", 3e-4: "3e-4", 0: "0", 128: "128", True: "true",
            None: "–", "fill": "fill", 4096: "4,096", 0.1: "0.1",
        }),
        (formats.perplexity, {
            34.2345: "34.23", 265.94: "265.9", 999.97: "1,000", 1373.4: "1,373", 2.5e7: "2.5e7",
        }),
        (formats.percent, {0: "0 %", 4e-4: "< 0.1 %", 0.012: "1.2 %", 0.5: "50 %", 1: "100 %"}),
        (lambda n: formats.plural(n, "trial"), {0: "no trials", 1: "1 trial", 2: "2 trials"}),
        (formats.moment, {
            None: "–",
            dt.datetime(2026, 7, 1, 1, 30, tzinfo=BERLIN): "2026-06-30 23:30 UTC",
        }),
    ],
)  # fmt: skip
def test_what_is_shown(show, texts):
    assert {value: show(value) for value in texts} == texts
