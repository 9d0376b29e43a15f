"""Numbers as people read them."""

from __future__ import annotations

import math


def count(number: float) -> str:
    """A large number in a few characters: 1234567 -> `1.23 M`."""
    for limit, unit in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e4, " k")):
        if abs(number) >= limit:
            scale = {" T": 1e12, " G": 1e9, " M": 1e6, " k": 1e3}[unit]
            return f"{number / scale:.3g}{unit}"
    return f"{number:,.0f}"


def flops(number: float) -> str:
    """FLOPs in scientific notation: `1e15`, `9.97e14`."""
    if number <= 0:
        return "0"
    exponent = math.floor(math.log10(number))
    mantissa = f"{number / 10**exponent:.3g}"
    if mantissa == "10":
        mantissa, exponent = "1", exponent + 1
    return f"{mantissa}e{exponent}"


def duration(seconds: float) -> str:
    """A time as a person says it."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 90:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    if seconds < 172_800:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86_400:,.1f} days"


def gib(n_bytes: float) -> str:
    """Bytes in MiB or GiB."""
    return f"{n_bytes / 2**30:.2f} GiB" if n_bytes >= 2**30 else f"{n_bytes / 2**20:.0f} MiB"
