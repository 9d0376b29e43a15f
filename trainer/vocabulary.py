"""Which token ids a sampled head compares with: a pure function of (seed, step). No torch.

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


def inclusion_probabilities(counts: NDArray[np.int64], n_samples: int) -> NDArray[np.float64]:
    """π(v), each in (0, 1], their sum n_samples.

    Args:
        counts: (V,) how often each id occurs in the training text.
        n_samples: ids to draw (K), at most V.
    """
    shares = (counts + 0.5) ** POWER
    # The largest shares are certain; those that remain divide what is left. With the shares in
    # descending order, k are certain where the k-th would otherwise get more than 1.
    order = np.argsort(-shares, kind="stable")
    rest = np.cumsum(shares[order][::-1])[::-1]
    places_left = n_samples - np.arange(len(shares))
    certain = int(np.argmin(shares[order] * places_left >= rest)) if n_samples < len(counts) else 0
    if n_samples >= len(counts):
        return np.ones(len(counts))
    probabilities = np.ones(len(counts))
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

    def sample(self, step: int, micro: int) -> NDArray[np.int64]:
        """(K,) different ids, ascending, for micro-batch `micro` of step `step`."""
        random = np.random.default_rng((self._seed, _SAMPLE, step, micro))
        order = random.permutation(len(self.inclusion))
        drawn = systematic_sample(self.inclusion[order], self.n_samples, random.random())
        return np.sort(order[drawn])


def systematic_sample(
    inclusion: NDArray[np.float64], n_samples: int, start: float
) -> NDArray[np.int64]:
    """Which of the stretches that lie end to end the marks start, start + 1, … fall into.

    Args:
        inclusion: (V,) lengths of the stretches, each at most 1, their sum n_samples.
        n_samples: marks (K).
        start: the first mark, in [0, 1).

    Returns:
        (K,) ascending, none twice.
    """
    reached = np.cumsum(inclusion)
    ranks = np.arange(n_samples)
    marks = (start + ranks) * (reached[-1] / n_samples)
    drawn = np.searchsorted(reached, marks, side="right")
    # Rounding may put two marks into one stretch, or the last beyond the end.
    drawn = np.maximum.accumulate(drawn - ranks) + ranks
    return np.minimum(drawn, len(inclusion) - n_samples + ranks)
