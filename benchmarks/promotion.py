"""Which trial to promote, on simulated searches: regret of both answers, and of the intervals.

    python -m benchmarks.promotion [--world porian2024-refinedweb] [--seeds 20] [--trials 40]
        [--rungs 0.1,0.3,1] [--budget 1e15] [--scale 100] [--sampler law]
        [--measured-only]

Each seed is a whole simulated search by the real orchestrator. Regret is the noise-free loss at the
promoted budget of the run that `promote` would make, over the lowest that any configuration of the
space could reach there, learning rate, batch and the rest as the world likes them best; at the
search's own budget it is that of the trial that measured best. Coverage is of the 80 % interval,
held against the loss that the promotion would measure.

`--world drawn` makes each seed's search in a world of its own
(`studies.simulation.worlds.drawn_world`): only then are the seeds as many tests of the interval,
and of the choice, as there are seeds.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import ROOT, about, write_results
from budgetsweep.config import parse
from budgetsweep.constraint import Admitted, Limits, admit
from studies.database.run_kind import RunKind
from studies.database.store import Store
from studies.scaling.prediction import StudyFit, fit_study
from studies.scaling.rescaling import promoted_config
from studies.search import Hooks, search
from studies.settings import SearchSettings
from studies.simulation.backend import Simulated
from studies.simulation.worlds import SimulatedWorld, world_named
from studies.space.rungs import Rungs
from studies.space.search_space import SearchSpace
from trainer.config import RunConfig

Row = dict[str, Any]


def filled(data: RunConfig | Row, limits: Limits) -> RunConfig | None:
    """The configuration with all that the budget affords; None: it is refused."""
    answer = admit(data, limits)
    return answer.config if isinstance(answer, Admitted) else None


def best_possible(
    world: SimulatedWorld, space: SearchSpace, base: Row, limits: Limits
) -> tuple[float, RunConfig]:
    """The lowest noise-free loss of any shape of the space, tuned as the world likes it."""
    found: tuple[float, RunConfig] | None = None
    names = ["n_embd", "n_layer", "head_dim", "seq_len"]
    names += [name for name in ("head_samples",) if name in space.parameters]
    shapes = {
        name: space.parameters[name].all_values() if not space.parameters[name].is_fixed
        else [space.parameters[name].value]
        for name in names
    }  # fmt: skip
    for values in itertools.product(*shapes.values()):
        settings: Row = {**dict(zip(shapes, values, strict=True)), "batch_size": 64,
                         "max_lr": 1e-2, "warmup_fraction": world.warmup_fraction,
                         "weight_decay": world.weight_decay, "beta2": world.beta2}  # fmt: skip
        fixed = {n: p.value for n, p in space.parameters.items() if p.is_fixed}
        config = filled(space.run_data({**fixed, **settings}, base), limits)
        if config is None:
            continue
        batch = world.best_batch_tokens(float(config.total_tokens)) / config.seq_len
        config = config.with_changes(batch_size=max(1, round(batch)), num_training_steps="fill")
        again = filled(config, limits)
        if again is None:
            continue
        lr = world.best_lr(again, float(again.total_tokens))
        again = again.with_changes(max_lr=lr, min_lr=0.0, min_lr_ratio=None)
        loss = world.true_loss(again)
        if found is None or loss < found[0]:
            found = loss, again
    assert found is not None
    return found


def outcome(
    world: SimulatedWorld,
    fit: StudyFit,
    config: RunConfig,
    budget: int,
    convention: Any,
    *,
    by_law: bool,
) -> tuple[RunConfig, Row]:
    """The promotion of a trial's configuration: what it would reach, and what was predicted."""
    limits = Limits(budget, convention)
    wanted, _ = promoted_config(config, budget, (), limits)
    promoted = filled(wanted, limits)
    assert promoted is not None
    if by_law:
        promoted = filled(fit.tuned(wanted, promoted), limits)
        assert promoted is not None
    told = fit.predict(promoted)
    measured = float(world.measured_loss(promoted))
    row: Row = {
        "loss": float(world.true_loss(promoted)),
        "measured": measured,
        "n": config.n_params,
    }
    if told is not None:
        row |= {
            "predicted": told.loss_nats, "low": told.low_nats, "high": told.high_nats,
            "inside": bool(told.low_nats <= measured <= told.high_nats),
        }  # fmt: skip
    return promoted, row


@dataclass(frozen=True)
class Best:
    """The best possible promotion in a world."""

    world: SimulatedWorld
    loss_nats: float
    config: RunConfig


@functools.cache
def best_in(name: str, budget: float, scale: float) -> Best:
    """The best that a search of this budget in a world could be promoted to."""
    world = world_named(name)
    wanted = scale if scale > 1.0 else None
    settings = SearchSettings(budget_flops=int(budget), backend=Simulated(name), for_scale=wanted)
    limits = Limits(int(scale * budget), settings.convention)
    loss, config = best_possible(world, settings.resolved_space(), settings.base(), limits)
    return Best(world, loss, config)


def one_seed(args: argparse.Namespace, seed: int) -> Row:
    """A simulated search and both of its promotions."""
    best = best_in(world_of_seed(args, seed), args.budget, args.scale)
    world = best.world
    with tempfile.TemporaryDirectory() as folder:
        settings = settings_for(args, Path(folder), seed)
        started = time.perf_counter()
        found = search(settings, Hooks())
        seconds = time.perf_counter() - started
        with Store.open(settings.storage) as store:
            study = store.study()
            runs = {run.number: run for run in store.runs(study.id, kind=RunKind.TRIAL)}
            fit = fit_study(study, store.runs(study.id), args.scale)
            spent = store.ledger(study.id).spent.flops(study.convention)
    assert found.best is not None
    row: Row = {"seed": seed, "world": world.name, "best": best.loss_nats,
                "best_n": best.config.n_params, "refusal": fit.refusal, "seconds": seconds,
                "budgets": spent / int(args.budget)}  # fmt: skip
    here = best_in(world.name, args.budget, 1.0).loss_nats
    own = parse(RunConfig, runs[found.best.number].config, "trial")
    row["regret_here"] = world.true_loss(own) - here
    chosen = {"measured": found.best.number}
    chosen["predicted"] = fit.candidates[0].number if fit.candidates else found.best.number
    for name, number in chosen.items():
        config = parse(RunConfig, runs[number].config, "trial")
        budget = int(args.scale * args.budget)
        promoted, row[name] = outcome(
            world, fit, config, budget, study.convention,
            by_law=name == "predicted" and bool(fit.candidates),
        )  # fmt: skip
        tuned = world.best_lr(promoted, float(promoted.total_tokens))
        row[name] |= {
            "regret": float(row[name]["loss"] - best.loss_nats),
            "lr_off": promoted.max_lr / tuned,
            "batch_off": promoted.tokens_per_step
            / world.best_batch_tokens(float(promoted.total_tokens)),
        }
    return row


def world_of_seed(args: argparse.Namespace, seed: int) -> str:
    """Name of the world that a seed searches in."""
    return f"drawn-{seed}" if args.world == "drawn" else str(args.world)


def settings_for(args: argparse.Namespace, folder: Path, seed: int) -> SearchSettings:
    """The search of one seed."""
    return SearchSettings(
        storage=folder / "study.db",
        budget_flops=int(args.budget),
        trials=args.trials,
        rungs=Rungs.parse(args.rungs),
        for_scale=None if args.measured_only else args.scale,
        sampler=args.sampler,
        backend=Simulated(world_of_seed(args, seed)),
        seed=seed,
    )


def markdown(rows: list[Row], args: argparse.Namespace, facts: Row) -> str:
    """The table for people."""
    held = {name: [r[name]["inside"] for r in rows if "inside" in r[name]]
            for name in ("predicted", "measured")}  # fmt: skip
    inside = [one for found in held.values() for one in found]
    best = statistics.median(r["best"] for r in rows)
    best_n = statistics.median(r["best_n"] for r in rows) / 1e6
    lines = [
        f"# Which trial to promote: {args.world}, {args.budget:.0e} to ×{args.scale:g}", "",
        f"`{facts['command']}`; {facts['machine']}, commit {facts['commit']}. {len(rows)} seeds of "
        f"{args.trials} trials, rungs {args.rungs}, sampler {args.sampler}. Best possible: "
        f"{best:.3f} nats with {best_n:.3g} M parameters (medians). Simulated: "
        "nothing was trained.", "",
        "| selection | regret, median | quartiles | worst | parameters, median |",
        "|---|---:|---|---:|---:|",
    ]  # fmt: skip
    for name in ("predicted", "measured"):
        regrets = [r[name]["regret"] for r in rows]
        low, middle, high = np.quantile(regrets, [0.25, 0.5, 0.75])
        size = statistics.median(r[name]["n"] for r in rows) / 1e6
        lines.append(f"| {name} | {middle:.3f} | {low:.3f} to {high:.3f} | {max(regrets):.3f} | "
                     f"{size:.3g} M |")  # fmt: skip
    here = np.quantile([r["regret_here"] for r in rows], [0.25, 0.5, 0.75])
    lines += [f"| at the search's budget | {here[1]:.3f} | {here[0]:.3f} to {here[2]:.3f} | "
              f"{max(r['regret_here'] for r in rows):.3f} | |"]  # fmt: skip
    refused = sum(r["refusal"] is not None for r in rows)
    each = ", ".join(f"{sum(found)} of {len(found)} {name}" for name, found in held.items())
    lines += ["", f"The 80 % interval held {sum(inside)} of {len(inside)} losses ({each}). "
              f"{refused} of {len(rows)} fits were refused. A search cost "
              f"{statistics.median(r['budgets'] for r in rows):.3g} budgets (median) and "
              f"{statistics.median(r['seconds'] for r in rows):.3g} s.", ""]  # fmt: skip
    return "\n".join(lines)


def main() -> int:
    """Run the seeds and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--world", default="porian2024-refinedweb")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--rungs", default="0.1,0.3,1")
    parser.add_argument("--budget", type=float, default=1e15)
    parser.add_argument("--scale", type=float, default=100.0)
    parser.add_argument("--sampler", default="law")
    parser.add_argument("--measured-only", action="store_true",
                        help="search for the best at the budget, without --for-scale")  # fmt: skip
    parser.add_argument("--name", help="of the files in --out")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    args = parser.parse_args()
    rows = []
    for seed in range(args.seeds):
        rows.append(one_seed(args, seed))
        r = rows[-1]
        shown = {n: {k: round(v, 3) for k, v in r[n].items()} for n in ("predicted", "measured")}
        print(seed, r["refusal"] or "", shown, flush=True)
    facts = about("python -m benchmarks.promotion " + " ".join(sys.argv[1:]))
    text = markdown(rows, args, facts)
    name = args.name or f"promotion_{args.world.split('-')[0]}_{args.sampler}"
    write_results(args.out, name, {**facts, "rows": rows}, text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
