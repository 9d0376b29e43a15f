"""Trials until a search is within 0.02 nats of the best possible, sampler by sampler.

    python -m benchmarks.samplers [--seeds 20] [--worlds A,B] [--arms X,Y] [--table CSV] [--add]

Simulated worlds (docs/simulation.md), the default space at 1e15 FLOPs, the same seeds for all. An
arm is a sampler, with the budget as an equation (`fill`: the steps are what the budget affords) or
with a free number of steps and rejection of what is over budget, which is what plain Optuna does;
with the known-good first proposal or without. A search has arrived when the noise-free loss of the
trial with the lowest *measured* loss is within 0.02 nats of the lowest in the space. Refused
proposals train nothing and are counted apart.

`--drawn` makes each seed's search in a world of its own (`studies.simulation.worlds.drawn_world`)
and goes on to the end: the mean regret after 8 to 32 trials of the arms, with its standard error.

`--table` replays published runs besides (docs/simulation.md): the space is the sizes that it has
at a budget, a proposal that was made before is refused. `--worlds ""` leaves the simulated ones
out. `--add` keeps what the results have of other arms.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import math
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import about, write_results
from budgetsweep.constraint import Admitted, Limits, admit
from studies.samplers.base import SearchProblem
from studies.samplers.law import Places
from studies.samplers.proposals import Proposals
from studies.settings import SearchSettings
from studies.simulation.replay import Replay
from studies.simulation.run_table import RunTable
from studies.simulation.worlds import DEFAULT_WORLD, WORLDS, SimulatedWorld, world_named
from studies.space.defaults import default_space, first_proposal
from studies.space.search_space import SearchSpace, Value, space_from_dict
from trainer.config import TOKENIZER_VOCABULARIES, RunConfig

BUDGET = 10**15
CLOSE_NATS = 0.02
CAPS = {"gp": 30, "law": 60}
CAP = 60
"""Trials after which a search is given up."""
DRAWN_AT = (8, 12, 16, 24, 32)
"""Trials after which regrets in drawn worlds are given."""

_default = WORLDS[DEFAULT_WORLD]
WORLDS_TRIED: dict[str, SimulatedWorld] = {
    **WORLDS,
    "lr optimum x3": dataclasses.replace(_default, lr_factor=3 * _default.lr_factor),
    "half the curvature": dataclasses.replace(
        _default,
        lr_curvature=_default.lr_curvature / 2,
        batch_curvature=_default.batch_curvature / 2,
    ),
    "no shape terms": dataclasses.replace(_default, aspect_curvature=0.0, head_dim_curvature=0.0),
    "all otherwise": dataclasses.replace(
        WORLDS["hoffmann2022"], lr_factor=0.5, lr_batch_exponent=0.0, batch_factor=3.0,
        lr_curvature=0.12, aspect=90.0, aspect_curvature=0.03, context_nats=2.0, beta2=0.95,
        weight_decay=0.0, noise_nats=0.02,
    ),
}  # fmt: skip
"""The published laws, and worlds that are not what the `law` sampler expects."""


@dataclass(frozen=True)
class Arm:
    """A way to search."""

    sampler: str
    equation: bool
    first: bool

    @property
    def name(self) -> str:
        """For tables."""
        steps = "" if self.equation else ", steps free"
        return f"{self.sampler}{steps}{', first' if self.first else ''}"


PLAIN = Arm("tpe", equation=False, first=False)
"""Plain Optuna TPE with rejection."""
ARMS = (
    PLAIN,
    Arm("tpe", equation=True, first=False),
    Arm("tpe", equation=True, first=True),
    Arm("random", equation=False, first=False),
    Arm("random", equation=True, first=True),
    Arm("qmc", equation=False, first=False),
    Arm("qmc", equation=True, first=True),
    Arm("gp", equation=False, first=False),
    Arm("gp", equation=True, first=True),
    Arm("law", equation=True, first=False),
    Arm("law", equation=True, first=True),
)
REPLAYED = tuple(
    Arm(sampler, equation=True, first=first)
    for sampler in ("tpe", "random", "qmc", "gp", "law")
    for first in (False, True)
)
"""Arms over a table of runs, where every proposal has its budget."""
EVERYWHERE = (PLAIN, ARMS[2], ARMS[-1])
"""Arms that are tried in every world; the others in the first one only."""


@dataclass(frozen=True)
class Problem:
    """What is searched: a space under a budget, with a true and a measured loss."""

    space: SearchSpace
    base: dict[str, Any]
    limits: Limits
    true: Callable[[RunConfig], float]
    measured: Callable[[RunConfig], float]
    best: float
    """The lowest true loss in the space."""
    first: dict[str, Value] | None = None
    """The known-good first proposal; None: that of the default space."""

    def config(self, settings: dict[str, Value], seed: int) -> RunConfig | None:
        """The filled configuration of a proposal; None: refused."""
        data = {**self.space.run_data(settings, self.base), "seed": seed}
        answer = admit(data, self.limits)
        return answer.config if isinstance(answer, Admitted) else None


@dataclass(frozen=True)
class Arrival:
    """How a search went."""

    trials: int | None
    """Trained trials until it was close; None: not within the cap."""
    refused: int
    """Proposals refused on the way."""
    regret_nats: float
    """Of the best at the end."""
    regrets: tuple[float, ...] = ()
    """The same after each trained trial."""


def lowest(space: SearchSpace, loss: Callable[[dict[str, Value]], float], seeds: int = 3) -> float:
    """The lowest loss in a space, by evolution from random settings; infinite: refused."""
    found, places = math.inf, Places(space)
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        pool = [(loss(s), s) for s in (space.random_settings(rng) for _ in range(300))]
        for _ in range(40):
            pool = sorted(pool, key=lambda one: one[0])[:15]
            fresh = [places.neighbour(s, rng) for _, s in pool for _ in range(5)]
            pool += [(loss(s), s) for s in fresh]
        found = min(found, *(one[0] for one in pool))
    return found


def simulated(world: SimulatedWorld) -> dict[bool, Problem]:
    """The default search in a world, with the budget as an equation or free steps (the key)."""
    base: dict[str, Any] = {
        "tokenizer_encoding": "gpt2", "data": {"source": "simulated"},
    }  # fmt: skip
    limits = Limits(BUDGET)
    space = default_space(BUDGET, TOKENIZER_VOCABULARIES["gpt2"], "nanogpt")
    problem = Problem(space, base, limits, world.true_loss, world.measured_loss, 0.0)

    def loss(settings: dict[str, Value]) -> float:
        config = problem.config(settings, 0)
        return math.inf if config is None else world.true_loss(config)

    best = lowest(space, loss)
    rng = np.random.default_rng(0)
    steps = sorted(
        config.steps
        for _ in range(500)
        if (config := problem.config(space.random_settings(rng), 0)) is not None
    )
    free = space.to_dict()
    free["parameters"]["num_training_steps"] = {
        "min": steps[len(steps) // 20], "max": steps[-len(steps) // 20],
        "distribution": "int_log_uniform",
    }  # fmt: skip
    return {
        True: dataclasses.replace(problem, best=best),
        False: dataclasses.replace(problem, best=best, space=space_from_dict(free, "free steps")),
    }


def search(problem: Problem, arm: Arm, cap: int, seed: int, *, stops: bool = True) -> Arrival:
    """One search until it is close, unless it never `stops`, or gives up."""
    space = problem.space
    first = None
    if arm.first and problem.first is not None:
        first = problem.first
    elif arm.first:
        vocabulary = TOKENIZER_VOCABULARIES["gpt2"]
        first = first_proposal(space, problem.limits.budget_flops, vocabulary, "nanogpt")
    searched = SearchProblem(space, problem.limits, problem.base, seed, first)
    proposals = Proposals(None, "benchmark", searched, arm.sampler, False)  # type: ignore[arg-type]
    lowest_measured, regret = math.inf, math.inf
    seen: set[str] = set()
    trained = refused = in_a_row = 0
    regrets: list[float] = []
    while trained < cap and refused < 20 * cap:
        proposal = proposals.propose(rejected_in_a_row=in_a_row)
        config = problem.config(proposal.settings, seed)
        key = repr(sorted(proposal.settings.items()))
        if config is None or key in seen:
            refused, in_a_row = refused + 1, in_a_row + 1
            proposals.fail(proposal.number)
            continue
        seen.add(key)
        trained, in_a_row = trained + 1, 0
        measured = problem.measured(config)
        if not math.isfinite(measured):
            proposals.fail(proposal.number)
        else:
            proposals.complete(proposal.number, measured)
        if measured < lowest_measured:
            lowest_measured, regret = measured, problem.true(config) - problem.best
            if stops and regret <= CLOSE_NATS:
                return Arrival(trained, refused, regret)
        regrets.append(regret)
    return Arrival(None, refused, regret, tuple(regrets))


def in_drawn_worlds(arms: list[Arm], seeds: int) -> None:
    """Print the mean regret of arms after some trials, each seed in a world of its own."""
    regrets: dict[Arm, list[tuple[float, ...]]] = {arm: [] for arm in arms}
    for seed in range(seeds):
        problems = simulated(world_named(f"drawn-{seed}"))
        for arm in arms:
            found = search(problems[arm.equation], arm, DRAWN_AT[-1], seed, stops=False)
            regrets[arm].append(found.regrets)
    for arm, rows in regrets.items():
        after = np.array([[row[n - 1] for n in DRAWN_AT] for row in rows])
        errors = after.std(axis=0, ddof=1) / math.sqrt(len(rows))
        told = zip(DRAWN_AT, after.mean(axis=0), errors, strict=True)
        cells = ", ".join(f"{n}: {mean:.4f} ± {error:.4f}" for n, mean, error in told)
        print(f"{arm.name}, n = {len(rows)}, nats after trials: {cells}", flush=True)


def summary(arrivals: list[Arrival], cap: int) -> dict[str, Any]:
    """Median and quartiles of the trials; None where a search of that rank did not arrive."""
    trials = [cap + 1 if a.trials is None else a.trials for a in arrivals]
    quartiles = [float(q) for q in np.quantile(trials, [0.25, 0.5, 0.75], method="higher")]
    return {
        "n": len(arrivals),
        "cap": cap,
        "arrived": sum(a.trials is not None for a in arrivals),
        "trials": [a.trials for a in arrivals],
        "quartiles": [None if q > cap else q for q in quartiles],
        "refused_median": statistics.median(a.refused for a in arrivals),
        "regret_median_nats": statistics.median(a.regret_nats for a in arrivals),
    }


def replayed(table: Replay, budget: int) -> Problem:
    """The sizes that a table has at a budget, with the losses of its runs."""
    settings = SearchSettings(backend=table, budget_flops=budget)
    space = settings.resolved_space()

    def loss(config: RunConfig) -> float:
        place = table.table.place(config)
        assert place is not None
        return place.run.loss_nats

    best = table.table.lowest(budget)
    assert best is not None
    first = table.first_proposal(space, budget)
    return Problem(space, settings.base(), Limits(budget), loss, loss, best.loss_nats, first)


def _cell(found: dict[str, Any]) -> str:
    if found["arrived"] == 0:
        return f"> {found['cap']} (0 of {found['n']}; {found['regret_median_nats']:.3f} left)"
    low, middle, high = (f"{q:g}" if q is not None else f"> {found['cap']}"
                         for q in found["quartiles"])  # fmt: skip
    rest = "" if found["arrived"] == found["n"] else f"; {found['arrived']} of {found['n']}"
    return f"**{middle}** ({low} to {high}{rest})"


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--worlds", default=",".join(WORLDS_TRIED))
    parser.add_argument("--arms", default=",".join(arm.name.replace(", ", "/") for arm in ARMS))
    parser.add_argument("--drawn", action="store_true", help="a world for each seed")
    parser.add_argument("--jobs", type=int, default=1, help="searches at a time")
    parser.add_argument("--table", type=Path)
    parser.add_argument("--budgets", default="1e17,8e17", help="of the table")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--add", action="store_true", help="keep the other arms' results")
    options = parser.parse_args()
    wanted = {name.replace("/", ", ") for name in options.arms.split(",")}
    arms = [arm for arm in ARMS if arm.name in wanted]
    if options.drawn:
        in_drawn_worlds(arms, options.seeds)
        return
    facts = about(f"python -m benchmarks.samplers --seeds {options.seeds}")
    result: dict[str, Any] = {**facts, "close_nats": CLOSE_NATS, "worlds": {}}
    before = options.out / "samplers.json"
    if options.add and before.exists():
        result = json.loads(before.read_text(encoding="utf-8"))
    worlds = [name for name in options.worlds.split(",") if name]
    problems = {name: simulated(WORLDS_TRIED[name]) for name in worlds}
    for name in worlds:
        entry = {"best_nats": problems[name][True].best, "arms": {}}
        result["worlds"].setdefault(name, entry)
    main_ones = [(name, arm) for name in worlds for arm in arms if arm in EVERYWHERE]
    others = [(name, arm) for name in worlds[:1] for arm in arms if arm not in EVERYWHERE]
    pool = ProcessPoolExecutor(options.jobs)
    for name, arm in main_ones + others:
        cap = CAPS.get(arm.sampler, CAP)
        began = time.perf_counter()
        one = functools.partial(search, problems[name][arm.equation], arm, cap)
        arrivals = list(pool.map(one, range(options.seeds)))
        found = {**summary(arrivals, cap), "seconds": time.perf_counter() - began}
        result["worlds"][name]["arms"][arm.name] = {**found, "commit": facts["commit"]}
        print(f"{name}: {arm.name}: {_cell(found)} ({found['seconds']:.0f} s)", flush=True)
        write_results(options.out, "samplers", result, _markdown(result))
    if options.table is not None:
        _replay(options, result, facts["commit"])
    write_results(options.out, "samplers", result, _markdown(result))


def _replay(options: argparse.Namespace, result: dict[str, Any], commit: str) -> None:
    replay = Replay(options.table)
    table = replay.table
    result["replay"] = {"table": options.table.name, "commit": commit, "budgets": {}}
    for text in options.budgets.split(","):
        problem = replayed(replay, int(float(text)))
        sizes = problem.space.size()
        assert sizes is not None
        there = table.sizes(float(text))
        near = [n for n in there if _loss(table, n, float(text)) <= CLOSE_NATS]
        arms: dict[str, Any] = {}
        result["replay"]["budgets"][text] = {"sizes": sizes, "close": len(near), "arms": arms}
        for arm in REPLAYED:
            arrivals = [search(problem, arm, sizes, seed) for seed in range(options.seeds)]
            arms[arm.name] = summary(arrivals, sizes)
            print(f"replay {text}: {arm.name}: {_cell(arms[arm.name])}", flush=True)


def _loss(table: RunTable, n_params: float, budget: float) -> float:
    """How far a size of the table is above the best of its budget."""
    runs = [one for one in table.table.points if math.isclose(one.flops, budget, rel_tol=0.1)]
    lowest = min(one.loss_nats for one in runs)
    return min(one.loss_nats for one in runs if one.n_params == n_params) - lowest


def _markdown(result: dict[str, Any]) -> str:
    worlds = result["worlds"]
    commits = {
        a.get("commit", result["commit"]) for w in worlds.values() for a in w["arms"].values()
    }
    commits |= {result["replay"]["commit"]} if "replay" in result else set()
    names = dict.fromkeys(name for world in worlds.values() for name in world["arms"])
    lines = [
        f"# Trials until within {CLOSE_NATS} nats of the best possible",
        "",
        f"{result['machine']}, commits {', '.join(sorted(commits))}; `{result['command']}`",
        "",
        "Median (quartiles) over the seeds of trained trials; `>`: more than the cap. First: with "
        "the known-good first proposal. Steps free: the number of steps is a parameter and what is "
        "over budget is refused; otherwise the budget gives the steps.",
        "",
        "| | " + " | ".join(worlds) + " |",
        "|---|" + "---|" * len(worlds),
    ]
    for name in names:
        found = [world["arms"].get(name) for world in worlds.values()]
        lines.append(f"| {name} | " + " | ".join(_cell(f) if f else "" for f in found) + " |")
    for budget, told in result.get("replay", {}).get("budgets", {}).items():
        lines += [
            "",
            f"Replay of {result['replay']['table']} at {budget} FLOPs, {told['sizes']} sizes of "
            f"which {told['close']} are as close; one proposed before is refused:",
            "",
            "| | trials | refused, median |",
            "|---|---|---:|",
        ]
        lines += [
            f"| {name} | {_cell(found)} | {found['refused_median']:g} |"
            for name, found in told["arms"].items()
        ]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
