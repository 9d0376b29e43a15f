"""A search over the grid that others ran: losses are those of a table of finished runs.

The table knows sizes, tokens and losses, so a replayed run is a size at a budget, C = 6 · N · D,
and its loss that of the run of that budget nearest in parameters. A shape only stands for its size:
a decoder of one-token windows (whose charge is 6 · N a token, without attention to speak of) and of
a width that gives it as many parameters. Rates, batches and shapes are not known and taken as well
tuned; no law is told them. See docs/replay.md.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from budgetsweep.constraint import Admitted, Rejected
from budgetsweep.errors import ConfigError, DataError, Reason
from model.config import ModelConfig
from model.flops import count_params
from studies.database.tables import Study
from studies.scaling.fit_data import Observation, distinct_budgets
from studies.scaling.runs_csv import RunsTable, read_runs
from studies.simulation.simulated_run import Run
from studies.simulation.worlds import TABLE
from studies.space.rungs import Rungs, rung_budget
from studies.space.search_space import SearchSpace, space_from_dict
from trainer.checkpoints.artefacts import read_finished, write_untrained
from trainer.config import TOKENIZER_VOCABULARIES, RunConfig
from trainer.events import Point, RunResult, RunStatus

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
TOKENS_PER_PARAM = 14.0
"""Of the first proposal, as of other searches (`studies.space.defaults`)."""


@dataclass(frozen=True)
class Place:
    """The run of a table that stands for one of ours."""

    line: int
    """Of the file."""
    run: Observation
    params_off: float
    """Its parameters over ours, less 1."""
    flops_off: float

    @property
    def words(self) -> str:
        """Which it is and how far away."""
        return (
            f"stands for line {self.line} of the table: {self.run.n_params:.4g} parameters "
            f"({self.params_off:+.2%}), {self.run.flops:.4g} FLOPs ({self.flops_off:+.2%})"
        )


@dataclass(frozen=True)
class ReplayTable:
    """Finished runs of others as a world: what a size reaches at a budget."""

    path: Path
    table: RunsTable
    digest: str
    """SHA-256 of the file's bytes."""

    @property
    def checksum(self) -> str:
        """Names the table by what is in it, in the place of a text's checksum."""
        return f"replayed:{self.digest[:48]}"

    @property
    def world(self) -> str:
        """What stands in each run's configuration."""
        return f"{TABLE}{self.digest[:16]}"

    @property
    def description(self) -> str:
        """One line for screens and reports, in the place of a text's description."""
        runs = self.table.observations
        sizes = len({one.n_params for one in runs})
        return (
            f"REPLAYED table {self.path.name} ({len(runs)} runs of {sizes} sizes at "
            f"{len(self.budgets)} budgets, {_scientific(self.budgets)} FLOPs): nothing trained"
        )

    @cached_property
    def budgets(self) -> list[float]:
        """Distinct budgets, 6 · N · D, ascending."""
        return distinct_budgets([one.flops for one in self.table.observations])

    def sizes(self, budget: float) -> list[float]:
        """Distinct numbers of parameters of the runs of a budget, ascending."""
        runs = self.table.observations
        return sorted({one.n_params for one in runs if _near(one.flops, budget, NEAR_FLOPS)})

    def place(self, config: RunConfig) -> Place | None:
        """The run that stands for a filled configuration; None: there is none near it.

        Of several of one size the best counts, as tuned.
        """
        return self._place(
            float(config.n_charged_params), 6.0 * config.n_charged_params * config.total_tokens
        )

    def _place(self, n_params: float, flops: float) -> Place | None:
        found = [
            (abs(math.log(one.n_params / n_params)), one.loss_nats, line, one)
            for one, line in zip(self.table.observations, self.table.lines, strict=True)
            if _near(one.flops, flops, NEAR_FLOPS) and _near(one.n_params, n_params, NEAR_PARAMS)
        ]
        if not found:
            return None
        _, _, line, one = min(found, key=lambda place: place[:3])
        return Place(line, one, one.n_params / n_params - 1, one.flops / flops - 1)

    def lowest(self, budget: float) -> Observation | None:
        """The run of the lowest loss of a budget; None: the table has none there."""
        runs = [one for one in self.table.observations if _near(one.flops, budget, NEAR_FLOPS)]
        return min(runs, key=lambda one: one.loss_nats, default=None)

    def admitted(self, answer: Admitted) -> Admitted | Rejected:
        """An admitted configuration, refused where no run of the table is near it."""
        config = answer.config
        if self.place(config) is not None:
            return answer
        facts = {"n_params": config.n_params, "tokens": config.total_tokens}
        return Rejected(
            Reason.NO_RUN, self.absence(config), charge_flops=answer.charge_flops, **facts
        )

    def absence(self, config: RunConfig) -> str:
        """What is missing near a configuration, in words."""
        n_params = float(config.n_charged_params)
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
            if multiple == 1:
                asked, told = "--budget", _scientific(self.budgets, most=16)
            else:
                asked = f"--rungs {float(multiple):g}"
                told = (
                    f"{_scientific(self.budgets, most=16)}; as multiples of --budget "
                    + ", ".join(f"{one / budget_flops:.4g}" for one in self.budgets)
                )
            raise ConfigError(
                f"{asked}: {self.path.name} has no run near {budget:.4g} FLOPs (6·N·D); its "
                f"budgets are {told}"
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

    def first(self, space: SearchSpace, budget_flops: int) -> dict[str, Any]:
        """The first proposal: the size that has 14 tokens a parameter, as in other searches."""
        wanted = math.sqrt(budget_flops / (6.0 * TOKENS_PER_PARAM))
        there = self.widths(space, budget_flops)
        return {"n_embd": min(there, key=lambda width: abs(math.log(there[width] / wanted)))}

    def base(self) -> dict[str, Any]:
        """Run settings of every trial."""
        return {
            "tokenizer_encoding": TOKENIZER,
            "trainer": "replayed",
            "world": self.world,
            "num_reports": 1,
            "num_evals": 1,
        }


def read_table(path: Path) -> ReplayTable:
    """A table of finished runs to search over; what `budgetsweep fit` reads.

    Raises:
        DataError: it cannot be read, or has runs of several groups.
    """
    table = read_runs(path)
    if len(table.groups) > 1:
        raise DataError(
            f"{path}: runs of several groups ({', '.join(table.groups[:4])}), whose losses cannot "
            "be compared; keep one of them in the file"
        )
    return ReplayTable(path.absolute(), table, hashlib.sha256(path.read_bytes()).hexdigest())


def table_of(study: Study) -> ReplayTable | None:
    """The table that a study replays, read again; None: it replays none.

    Raises:
        DataError: the file is gone or has changed.
    """
    place = study.settings.replay
    if place is None:
        return None
    path = Path(place)
    if not path.exists():
        raise DataError(
            f"{path}: the table that study {study.name!r} replays is not there any more; restore "
            "it, or tell the search where it is now (search --replay FILE, all else as before)"
        )
    table = read_table(path)
    if study.val_checksum not in (None, table.checksum):
        raise DataError(
            f"{path}: not the table that study {study.name!r} began with (its checksum differs), "
            "so losses could not be compared; restore it or begin a new --study"
        )
    return table


def replay_run(config: RunConfig, table: ReplayTable, run_dir: Path | None = None) -> Run:
    """What a run of the table came to, as the events of a training run: one point, at its end.

    Args:
        config: a filled configuration.
        table: where it is looked up.
        run_dir: folder for config.yaml, curve.csv and eval.json; None: nothing is written.

    Raises:
        ConfigError: no run of the table is near.
        CheckpointError: the folder cannot be written or holds another run's result.
    """
    if run_dir is not None:
        finished = read_finished(run_dir, config)
        if finished is not None:
            for point in finished.points:  # its caller may have been killed before it saw them
                _ = yield point  # a verdict comes too late
            return finished.result
    place = table.place(config)
    if place is None:
        raise ConfigError(table.absence(config))
    loss, tokens = place.run.loss_nats, config.total_tokens
    flops = config.steps * config.flops_per_step(config.convention)
    point = Point(step=config.steps, tokens=tokens, flops=flops, seconds=0.0, val_loss_nats=loss)
    yield point
    result = RunResult(
        status=RunStatus.COMPLETE,
        step=config.steps,
        steps_executed=config.steps,
        tokens=tokens,
        reason=place.words,
        val_loss_nats=loss,
        val_ppl=math.exp(loss),
        val_loss_stderr_nats=place.run.stderr_nats or None,
        device_name="replayed",
    )
    return write_untrained(run_dir, config, [point], result, table.checksum)


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
    told = [f"{number:.4g}" for number in numbers]
    return ", ".join(told) if len(told) <= most else f"{told[0]} to {told[-1]}"
