"""A table of finished runs as the runs of a search: which of them stands for a configuration.

The table knows sizes, tokens and losses, so a run of ours is a size at a budget, C = 6 · N · D, and
its loss that of the run of that budget nearest in parameters. A shape only stands for its size: a
decoder of one-token windows (whose charge is 6 · N per token, without attention to speak of) and of
a width that gives it as many parameters. See docs/simulation.md.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from budgetsweep.errors import ConfigError, DataError
from model.config import ModelConfig
from model.flops import count_params
from studies.scaling.fit_data import FitPoint, distinct_budgets
from studies.scaling.runs_csv import read_runs
from studies.space.rungs import Rungs, rung_budget
from studies.space.search_space import SearchSpace, space_from_dict
from trainer.config import TOKENIZER_VOCABULARIES, RunConfig

TOKENIZER = "bytes"
"""Of the shapes: with a small vocabulary a width can have almost any number of parameters."""
LAYERS = range(1, 7)
"""Depths among which the one is taken whose widths come nearest to all sizes."""
NEAR_PARAMS = 0.05
NEAR_FLOPS = 0.1
"""A run of the table stands for one of ours within these shares of its parameters and FLOPs."""
FEWEST_SIZES = 3
"""At the budget of a search: there is nothing to search among fewer."""
LEAST_STEPS = 2_000
"""Of the shortest run, so that whole steps leave nothing of a budget worth mentioning."""


@dataclass(frozen=True)
class Place:
    """The run of a table that stands for one of ours."""

    line: int
    """Of the file."""
    run: FitPoint
    params_off: float
    """Its parameters over ours, less 1."""
    flops_off: float

    @property
    def sentence(self) -> str:
        """Which it is and how far away."""
        return (
            f"stands for line {self.line} of the table: {self.run.n_params:.4g} parameters "
            f"({self.params_off:+.2%}), {self.run.flops:.4g} FLOPs ({self.flops_off:+.2%})"
        )


class RunTable:
    """Finished runs of others: what a size reaches at a budget."""

    def __init__(self, path: Path) -> None:
        """Read a table; what `budgetsweep fit` reads.

        Raises:
            DataError: it cannot be read, or has runs of several groups.
        """
        self.path, self.table = path.absolute(), read_runs(path)
        if len(self.table.groups) > 1:
            raise DataError(
                f"{path}: runs of several groups ({', '.join(self.table.groups[:4])}), whose "
                "losses cannot be compared; keep one of them in the file"
            )
        self.digest = hashlib.sha256(path.read_bytes()).hexdigest()

    @property
    def description(self) -> str:
        """One line for screens and reports, in the place of a data set's description."""
        runs = self.table.points
        sizes = len({one.n_params for one in runs})
        return (
            f"REPLAYED table {self.path.name} ({len(runs)} runs of {sizes} sizes at "
            f"{len(self.budgets)} budgets, {_scientific(self.budgets)} FLOPs): nothing trained"
        )

    @cached_property
    def budgets(self) -> list[float]:
        """Distinct budgets, 6 · N · D, ascending."""
        return distinct_budgets([one.flops for one in self.table.points])

    def _runs(self, budget: float) -> list[FitPoint]:
        return [one for one in self.table.points if _near(one.flops, budget, NEAR_FLOPS)]

    def sizes(self, budget: float) -> list[float]:
        """Distinct numbers of parameters of the runs of a budget, ascending."""
        return sorted({one.n_params for one in self._runs(budget)})

    def place(self, config: RunConfig) -> Place | None:
        """The run that stands for a filled configuration; None: there is none near it.

        Of several of one size the best counts, as tuned.
        """
        return self._place(
            float(config.n_active_params), 6.0 * config.n_active_params * config.total_tokens
        )

    def _place(self, n_params: float, flops: float) -> Place | None:
        found = [
            (abs(math.log(one.n_params / n_params)), one.loss_nats, line, one)
            for one, line in zip(self.table.points, self.table.lines, strict=True)
            if _near(one.flops, flops, NEAR_FLOPS) and _near(one.n_params, n_params, NEAR_PARAMS)
        ]
        if not found:
            return None
        _, _, line, one = min(found, key=lambda place: place[:3])
        return Place(line, one, one.n_params / n_params - 1, one.flops / flops - 1)

    def lowest(self, budget: float) -> FitPoint | None:
        """The run of the lowest loss of a budget; None: the table has none there."""
        return min(self._runs(budget), key=lambda one: one.loss_nats, default=None)

    def absence(self, config: RunConfig) -> str:
        """What is missing near a configuration, in words."""
        n_params = float(config.n_active_params)
        flops = float(config.budget_flops or 6.0 * n_params * config.total_tokens)
        there = self.sizes(flops)
        has = f"it has {_scientific(there)} parameters there" if there else (
            f"its budgets are {_scientific(self.budgets)}"
        )  # fmt: skip
        return f"no run of the table near N = {n_params:.3g}, C = {flops:.3g}; {has}"

    def check(self, budget_flops: int, rungs: Rungs) -> None:
        """Refuse a search that the table has no runs for.

        Raises:
            ConfigError: the budget or a rung is no budget of the table, or has too few sizes.
        """
        for multiple in rungs.multiples:
            budget = rung_budget(multiple, budget_flops)
            if self.sizes(budget):
                continue
            asked, listed = "--budget", _scientific(self.budgets, most=16)
            if multiple != 1:
                multiples = ", ".join(f"{one / budget_flops:.4g}" for one in self.budgets)
                asked = f"--rungs {float(multiple):g}"
                listed += f"; as multiples of --budget {multiples}"
            raise ConfigError(
                f"{asked}: {self.path.name} has no run near {budget:.4g} FLOPs (6·N·D); its "
                f"budgets are {listed}"
            )
        sizes = self.sizes(budget_flops)
        if len(sizes) < FEWEST_SIZES:
            raise ConfigError(
                f"--replay: {self.path.name} has runs of {len(sizes)} sizes at {budget_flops:.4g} "
                f"FLOPs; a search needs {FEWEST_SIZES} to choose from"
            )

    def widths(self, space: SearchSpace, budget: float) -> dict[int, int]:
        """Parameters of each width of `space` that a run of a budget stands for."""
        n_layer = int(space.parameters["n_layer"].value)  # type: ignore[arg-type]
        widths = [int(width) for width in space.parameters["n_embd"].all_values()]  # type: ignore[arg-type]
        sizes = {width: _size(width, n_layer) for width in widths}
        return {w: n for w, n in sizes.items() if self._place(float(n), budget) is not None}

    def space(self, budget_flops: int, rungs: Rungs) -> SearchSpace:
        """Widths that stand for the sizes of the budgets of a search, each once.

        Raises:
            ConfigError: a size so small that no width comes near it.
        """
        budgets = [rung_budget(multiple, budget_flops) for multiple in rungs.of_trials]
        sizes = sorted({size for budget in budgets for size in self.sizes(budget)})
        n_layer, widths = _nearest_widths(sizes)
        off, worst = max(
            (_off(size, width, n_layer), size) for size, width in zip(sizes, widths, strict=True)
        )
        if off > NEAR_PARAMS / 2:
            raise ConfigError(
                f"--replay: no decoder has about the {worst:.3g} parameters of a run; leave out "
                "rows of models so small"
            )
        shortest = min(budgets) / (6.0 * max(sizes))
        return space_from_dict(
            {
                "parameters": {
                    "recipe": {"value": "gpt2"},
                    "n_embd": {"values": sorted(set(widths))},
                    "n_layer": {"value": n_layer},
                    "n_head": {"value": 1},
                    "seq_len": {"value": 1},
                    "batch_size": {"value": max(1, int(shortest / LEAST_STEPS))},
                    "max_lr": {"value": 1e-3},
                    "min_lr_ratio": {"value": 0.0},
                    "p_dropout": {"value": 0.0},
                }
            },
            "--replay",
        )


def _near(one: float, other: float, share: float) -> bool:
    return abs(math.log(one / other)) <= math.log1p(share)


def _size(width: int, n_layer: int) -> int:
    n_vocab = TOKENIZER_VOCABULARIES[TOKENIZER]
    return count_params(
        ModelConfig(n_vocab=n_vocab, n_embd=width, n_head=1, n_positions=1, n_layer=n_layer)
    )


def _off(size: float, width: int, n_layer: int) -> float:
    return abs(math.log(_size(width, n_layer) / size))


def _nearest_widths(sizes: Sequence[float]) -> tuple[int, list[int]]:
    """The depth whose widths come nearest to all sizes, and these widths."""
    found = []
    for n_layer in LAYERS:
        widths = [_width(size, n_layer) for size in sizes]
        off = max(_off(size, width, n_layer) for size, width in zip(sizes, widths, strict=True))
        found.append((off, n_layer, widths))
    _, n_layer, widths = min(found)
    return n_layer, widths


def _width(size: float, n_layer: int) -> int:
    """The width whose decoder is nearest in parameters.

    Solve 12 · L · w² + (V + 13 · L + 3) · w = size; positions and norms are in the second term.
    """
    square, line = 12.0 * n_layer, TOKENIZER_VOCABULARIES[TOKENIZER] + 13.0 * n_layer + 3.0
    width = (math.sqrt(line**2 + 4 * square * size) - line) / (2 * square)
    around = {max(1, math.floor(width)), max(1, math.ceil(width))}
    return min(sorted(around), key=lambda one: _off(size, one, n_layer))


def _scientific(numbers: Iterable[float], most: int = 4) -> str:
    """A list of large numbers, or its ends where it is long."""
    texts = [f"{number:.4g}" for number in numbers]
    return ", ".join(texts) if len(texts) <= most else f"{texts[0]} to {texts[-1]}"
