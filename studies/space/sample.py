"""Random proposals of a space: what the constraint admits of them, and what data they need."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from budgetsweep.constraint import (
    MIN_VALIDATION_WINDOWS,
    Admitted,
    Limits,
    Rejected,
    admit,
)
from model.flops import Convention
from studies.space.search_space import SearchSpace
from trainer.config import RunConfig

EVAL_SHARE = 0.1
"""All validation passes of a run together take at most this share of its time."""
PLAN_SAMPLES = 256


@dataclass(frozen=True)
class Sample:
    """Random proposals of a space and what the constraint said of them."""

    admitted: list[Admitted]
    rejected: list[Rejected]

    @property
    def admitted_share(self) -> float:
        """Share admitted, 0 to 1."""
        total = len(self.admitted) + len(self.rejected)
        return len(self.admitted) / total if total else 0.0

    def reasons(self) -> Counter[str]:
        """How often each reason refused."""
        return Counter(rejection.reason.value for rejection in self.rejected)

    def example(self, reason: str) -> str:
        """One line of a proposal that was refused so."""
        return next(r.detail for r in self.rejected if r.reason.value == reason)


def sample_space(
    space: SearchSpace,
    base: Mapping[str, Any],
    limits: Limits,
    n: int,
    seed: int,
) -> Sample:
    """Draw `n` proposals uniformly and ask the constraint about each."""
    rng = np.random.default_rng(seed)
    admitted: list[Admitted] = []
    rejected: list[Rejected] = []
    for _ in range(n):
        answer = admit(space.run_data(space.random_settings(rng), base), limits)
        if isinstance(answer, Admitted):
            admitted.append(answer)
        else:
            rejected.append(answer)
    return Sample(admitted, rejected)


def wanted_train_tokens(sample: Sample) -> int | None:
    """Training tokens that the cheapest shape can use in one pass; None: all there are."""
    wanted = [admitted.config.wanted_train_tokens for admitted in sample.admitted]
    return None if None in wanted else max(number for number in wanted if number is not None)


def wanted_validation(sample: Sample, *, pairs: bool) -> int:
    """Validation tokens such that even the shortest run spends a tenth of its time on them.

    Given n passes at c times the training cost a token (`eval_cost`), solve
    n · c · val_tokens = 0.1 · train_tokens. Runs so short that this gives fewer windows than the
    constraint demands get that many all the same. Of an encoder-decoder they are `pairs`, which
    cost the same in both passes.
    """
    configs = [admitted.config for admitted in sample.admitted]
    trained = [c.steps * c.sequences_per_step if pairs else c.total_tokens for c in configs]
    affordable = min(
        int(EVAL_SHARE / eval_cost(c) * n / c.num_evals)
        for c, n in zip(configs, trained, strict=True)
    )
    longest = 1 if pairs else max(config.tokens_per_sequence for config in configs)
    return max(affordable, MIN_VALIDATION_WINDOWS * longest)


def eval_cost(config: RunConfig) -> float:
    """Cost of validating a token, of training it.

    A third, forward without backward; more where training samples the head: validation never does.
    """
    if config.head_samples is None:
        return 1.0 / 3.0
    whole = config.with_changes(head_samples=None)
    return whole.flops_per_step(Convention.MATMUL) / (
        3.0 * config.flops_per_step(Convention.MATMUL)
    )


def evenly_by_cost(sample: Sample) -> list[Admitted]:
    """At most three configurations of a sample: the cheapest, the median, the most expensive.

    By FLOPs per token.
    """
    ordered = sorted(sample.admitted, key=lambda a: charge_per_token(a.config))
    count = min(3, len(ordered))
    return [ordered[round(q)] for q in np.linspace(0, len(ordered) - 1, count)]


def charge_per_token(config: RunConfig) -> int:
    """Exact training FLOPs per token."""
    return config.flops_per_step(Convention.MATMUL) // config.tokens_per_step
