"""Numbers as people read them: the one formatter of screens, reports and benchmarks.

A missing or non-finite value is a dash, never a number.
"""

from __future__ import annotations

import datetime as dt
import math
from typing import TypeGuard

DASH = "–"


def known(value: float | None) -> TypeGuard[float]:
    """Whether there is a finite number."""
    return value is not None and math.isfinite(value)


def whole(value: float | None) -> str:
    """`1,234`."""
    return f"{value:,.0f}" if known(value) else DASH


def count(value: float | None) -> str:
    """Three digits with k, M, G or T: `3.42 M`."""
    if not known(value):
        return DASH
    for factor, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor * 0.9995:
            return f"{_three_digits(value / factor)} {unit}"
    return _three_digits(value)


def _three_digits(value: float) -> str:
    text = f"{value:#.3g}" if abs(value) < 100 else f"{value:,.0f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def flops(value: float | None, digits: int = 3) -> str:
    """`9.87e14`, as budgets are typed on the command line."""
    if not known(value):
        return DASH
    if value == 0:
        return "0"
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
    return f"{mantissa}e{int(exponent)}"


def rate(value: float | None) -> str:
    """A learning rate or another setting: `0.012`, `3e-4`."""
    if not known(value):
        return DASH
    if value == 0:
        return "0"
    return flops(value) if abs(value) < 1e-3 or abs(value) >= 1e6 else f"{value:.3g}"


def loss(value: float | None, digits: int = 4) -> str:
    """Nats, or bits per byte."""
    return f"{value:.{digits}f}" if known(value) else DASH


def perplexity(value: float | None) -> str:
    """Four digits at most: `265.9`, `1,373`."""
    if not known(value):
        return DASH
    if value >= 999.95:
        return f"{value:,.0f}" if value < 1e6 else flops(value)
    return f"{value:#.4g}" if value >= 10 else f"{value:.3f}"


def percent(share: float | None, digits: int | None = None) -> str:
    """`12 %`; without `digits` one decimal below ten."""
    if not known(share):
        return DASH
    value = 100 * share
    if digits is not None:
        return f"{value:.{digits}f} %"
    if 0 < abs(value) < 0.1:
        return "< 0.1 %"
    return f"{value:.1f} %" if abs(value) < 9.95 and value != round(value) else f"{value:.0f} %"


def times(factor: float | None) -> str:
    """`×12.3`, three digits."""
    if not known(factor):
        return DASH
    return f"×{factor:,.0f}" if abs(factor) >= 100 else f"×{factor:.3g}"


def duration(seconds: float | None) -> str:
    """`4.2 s`, `3 min 20 s`, `2 h`, `3 d 4 h`."""
    if not known(seconds):
        return DASH
    if seconds < 59.95:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    left, parts = round(seconds), []
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        parts.append((left // length, unit))
        left %= length
    first = next(i for i, (number, _) in enumerate(parts) if number)
    return " ".join(f"{number:,} {unit}" for number, unit in parts[first : first + 2] if number)


def gib(n_bytes: float | None) -> str:
    """`1.24 GiB` or `356 MiB`."""
    if not known(n_bytes):
        return DASH
    if n_bytes >= 1 << 30:
        return f"{_three_digits(n_bytes / (1 << 30))} GiB"
    return f"{_three_digits(n_bytes / (1 << 20))} MiB"


def moment(time: dt.datetime | None) -> str:
    """UTC to the minute."""
    return DASH if time is None else time.astimezone(dt.UTC).strftime("%Y-%m-%d %H:%M UTC")


def setting(value: object) -> str:
    """A configuration value: numbers short, everything else as it is."""
    if value is None:
        return DASH
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return f"{value:,}"
    return rate(value) if isinstance(value, float) else str(value)


def plural(number: int, word: str) -> str:
    """`1 trial`, `2 trials`, `no trials`."""
    if number == 1:
        return f"1 {word}"
    return f"{number:,} {word}s" if number else f"no {word}s"
