"""The scaling law's closed forms against direct arithmetic and a numeric minimum."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from studies.scaling.law import PUBLISHED, ScalingLaw

LAWS = st.builds(
    ScalingLaw,
    E=st.floats(0.5, 3.0),
    A=st.floats(10.0, 1000.0),
    alpha=st.floats(0.1, 0.7),
    B=st.floats(10.0, 1000.0),
    beta=st.floats(0.1, 0.7),
    delta=st.floats(0.05, 1.0),
)


def test_hoffmanns_own_figure() -> None:
    # Gopher's 280e9 parameters on 300e9 tokens: 1.69 + 0.083 + 0.251 (Hoffmann et al. 2022).
    assert PUBLISHED["hoffmann2022"].loss(280e9, 300e9) == pytest.approx(1.993, abs=0.001)


def test_delta_joins_the_terms() -> None:
    law = ScalingLaw(E=2.0, A=6.0, alpha=0.5, B=8.0, beta=0.5, delta=0.5)
    # At N = D = 1 the terms are 6 and 8: with delta = 1/2 their root of squares.
    assert law.loss(1.0, 1.0) == pytest.approx(2 + float(Fraction(100)) ** 0.5)
    assert law.loss(4.0, 1.0) == pytest.approx(2 + (9 + 64) ** 0.5)
    sizes = np.array([1.0, 4.0])
    assert law.loss(sizes, np.ones(2)) == pytest.approx([12.0, 2 + 73**0.5])


def test_a_small_delta_does_not_overflow() -> None:
    law = ScalingLaw(E=1.0, A=900.0, alpha=0.1, B=1000.0, beta=0.1, delta=0.001)
    assert law.loss(1e6, 1e6) == pytest.approx(1 + 1000.0 / 1e6**0.1, rel=1e-3)


@given(law=LAWS, exponent=st.floats(13, 21))
def test_the_best_size_is_the_numeric_minimum(law: ScalingLaw, exponent: float) -> None:
    flops = 10.0**exponent

    def at(ln_n: float) -> float:
        size = float(np.exp(ln_n))
        return float(law.loss(size, flops / 6 / size))

    best = law.best_params(flops)
    found = minimize_scalar(at, bracket=(np.log(best) - 1.5, np.log(best) + 1.0), tol=1e-10)
    assert at(np.log(best)) <= found.fun + 1e-9
