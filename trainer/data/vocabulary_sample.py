"""The vocabulary entries of a sampled softmax: a pure function of (seed, step). No torch.

Id v is drawn with probability π(v) = min(1, c · f(v)^0.75), f its frequency in the training text
and c such that K ids are drawn: the frequent ones always, the rare ones now and then. Exactly K
different ids come by systematic sampling along a random order (Hartley & Rao 1962).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

POWER = 0.75
"""Flattens the frequencies (Mikolov et al. 2013, "Distributed representations", 2.2)."""
_SAMPLE = 2
"""Keeps these draws apart from those of the data order and of corruption."""
STEPS_OF_AN_ORDER = 64
"""Steps that share a random order: a new one takes 2 ms, a draw along it 0.1 ms (one CPU core)."""


def inclusion_probabilities(counts: NDArray[np.int64], n_samples: int) -> NDArray[np.float64]:
    """π(v), each in (0, 1], their sum n_samples (K), from (V,) occurrences in the text; K <= V."""
    probabilities = np.ones(len(counts))
    if n_samples >= len(counts):
        return probabilities
    shares = (counts + 0.5) ** POWER
    # The largest shares are certain; those that remain divide what is left. With the shares in
    # descending order, k are certain where the k-th would otherwise get more than 1.
    order = np.argsort(-shares, kind="stable")
    rest = np.cumsum(shares[order][::-1])[::-1]
    places_left = n_samples - np.arange(len(shares))
    certain = int(np.argmin(shares[order] * places_left >= rest))
    uncertain = order[certain:]
    probabilities[uncertain] = shares[uncertain] * (n_samples - certain) / rest[certain]
    return probabilities


class VocabularySampler:
    """Draws the ids of each micro-batch."""

    def __init__(self, counts: NDArray[np.int64], n_samples: int, seed: int) -> None:
        """Args: how often each id occurs (V,), ids to draw (K), the run's seed."""
        self.n_samples = n_samples
        self.inclusion = inclusion_probabilities(counts, n_samples)
        self._seed = seed
        self._orders: tuple[int, NDArray[np.int64], NDArray[np.float64]] | None = None

    def sample(self, step: int, micro: int) -> NDArray[np.int64]:
        """(K,) different ids, ascending, for micro-batch `micro` of step `step`."""
        order, reached = self._order(step // STEPS_OF_AN_ORDER)
        start = np.random.default_rng((self._seed, _SAMPLE, step, micro)).random()
        return np.sort(order[systematic_sample(reached, self.n_samples, start)])

    def _order(self, number: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """A random order of the ids, and the sum of the chances up to each."""
        if self._orders is None or self._orders[0] != number:
            random = np.random.default_rng((self._seed, _SAMPLE, number))
            order = random.permutation(len(self.inclusion))
            self._orders = number, order, np.cumsum(self.inclusion[order])
        return self._orders[1:]


def systematic_sample(
    reached: NDArray[np.float64], n_samples: int, start: float
) -> NDArray[np.int64]:
    """(K,) stretches, ascending and none twice, into which the marks start, start + 1, … fall.

    Stretch v ends at reached[v], (V,); none is longer than 1, the last ends at n_samples (K).
    `start` is in [0, 1).
    """
    ranks = np.arange(n_samples)
    marks = (start + ranks) * (reached[-1] / n_samples)
    drawn = np.searchsorted(reached, marks, side="right")
    # Rounding may put two marks into one stretch, or the last beyond the end.
    drawn = np.maximum.accumulate(drawn - ranks) + ranks
    return np.minimum(drawn, len(reached) - n_samples + ranks)
