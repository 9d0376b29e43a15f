"""Scaling laws: the loss that a model of N parameters reaches on D tokens. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
Number = TypeVar("Number", float, FloatArray)


@dataclass(frozen=True)
class ScalingLaw:
    """L(N, D) = E + [(A / N^alpha)^(1/delta) + (B / D^beta)^(1/delta)]^delta in nats.

    With delta = 1 this is Hoffmann et al. 2022, eq. 2; with E = 0 it is Kaplan et al. 2020,
    eq. 1.5 (their fit: delta 0.095). The smaller delta, the more the scarcer of the two decides
    and the deeper the valley of the best N at one budget.
    """

    E: float
    """Entropy of the data: what no model of any size gets below."""
    A: float
    alpha: float
    B: float
    beta: float
    delta: float = 1.0

    def loss(self, n_params: Number, tokens: Number) -> Number:
        """Loss in nats of N parameters trained on D tokens at the end of a decayed schedule."""
        size, data = self.A / n_params**self.alpha, self.B / tokens**self.beta
        if self.delta == 1.0:
            return self.E + size + data
        # The larger one is taken out: a power of 1/delta would overflow.
        larger, smaller = np.maximum(size, data), np.minimum(size, data)
        joined = larger * (1.0 + (smaller / larger) ** (1.0 / self.delta)) ** self.delta
        return self.E + joined

    def best_params(self, flops: float) -> float:
        """The N with the lowest loss where `flops` = 6 · N · D.

        Closed form; with delta = 1 that of Hoffmann et al. 2022, eq. 4.
        """
        ratio = (self.alpha / self.beta) ** self.delta * self.A / self.B
        return float((ratio * (flops / 6.0) ** self.beta) ** (1.0 / (self.alpha + self.beta)))


PUBLISHED: dict[str, ScalingLaw] = {
    "hoffmann2022": ScalingLaw(E=1.69, A=406.4, alpha=0.34, B=410.7, beta=0.28),
    "besiroglu2024": ScalingLaw(E=1.8172, A=482.01, alpha=0.3478, B=2085.43, beta=0.3658),
    "porian2024-refinedweb": ScalingLaw(
        E=2.095, A=111.1, alpha=0.243, B=172.2, beta=0.2305, delta=0.2172
    ),
}
"""Published fits, N without embeddings as their authors counted: Hoffmann et al. 2022, approach 3
(MassiveText); Besiroglu et al. 2024, their points fitted again. Our own fit to the isoFLOP runs of
Porian et al. 2024 on RefinedWeb, N with the head: 5 to 900 million parameters, 1.25e16 to 2.56e19
FLOPs, of the 121 runs the 78 with 3 tokens per parameter or more within 0.4 % (mean)."""


def steplaw_lr(n_params: float, tokens: float) -> float:
    """Best peak learning rate of AdamW: 1.79 · N^-0.713 · D^0.307 (StepLaw, Li et al. 2025)."""
    return float(1.79 * n_params**-0.713 * tokens**0.307)


def steplaw_batch_tokens(tokens: float) -> float:
    """Best tokens per step: 0.58 · D^0.571 (StepLaw, Li et al. 2025)."""
    return float(0.58 * tokens**0.571)
