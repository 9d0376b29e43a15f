"""Column types that every database treats alike."""

from __future__ import annotations

import datetime as dt
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from studies.database import tables


@given(st.integers(-(10**38), 10**38))
def test_whole_numbers_of_any_size(value: int) -> None:
    column = tables.ExactInt()
    dialect: Any = None
    stored = column.process_bind_param(value, dialect)
    assert isinstance(stored, str)
    assert column.process_result_value(stored, dialect) == value


def test_times_come_back_in_utc() -> None:
    column = tables.UtcDateTime()
    dialect: Any = None
    local = dt.datetime(2026, 1, 2, 3, tzinfo=dt.timezone(dt.timedelta(hours=5)))
    stored = column.process_bind_param(local, dialect)
    assert stored == dt.datetime(2026, 1, 1, 22)
    back = column.process_result_value(stored, dialect)
    assert back == local
