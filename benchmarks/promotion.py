"""Which trial to promote, on simulated searches: regret of both answers, and of the intervals.

    python -m benchmarks.promotion [--world porian2024-refinedweb] [--seeds 20] [--trials 40]
        [--rungs 0.1,0.3,1] [--trunks [0.2]] [--budget 1e15] [--scale 100] [--sampler tpe]
        [--measured-only]

Each seed is a whole simulated search by the real orchestrator. Regret is the noise-free loss at the
promoted budget of the run that `promote` would make, over the lowest that any configuration of the
space could reach there, learning rate, batch and the rest as the world likes them best. Coverage is
of the 80 % interval, held against the loss that the promotion would measure.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import ROOT, about, write_results
from budgetsweep.config import parse
from budgetsweep.constraint import Admitted, Limits, admit
from studies.prediction import StudyFit, fit_study
from studies.rescaling import promoted_config
from studies.rungs import COOLDOWN, Rungs
from studies.search import Hooks, search
from studies.settings import SearchSettings
from studies.space import SearchSpace
from studies.store import Store
from trainer.config import RunConfig
from trainer.worlds import SimulatedWorld, world_named

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
    shapes = {
        name: space.parameters[name].all_values() if not space.parameters[name].is_fixed
        else [space.parameters[name].value]
        for name in ("n_embd", "n_layer", "head_dim", "seq_len")
    }  # fmt: skip
    extra = (
        {"head_samples": max(v for v in space.parameters["head_samples"].all_values() if v)}
        if "head_samples" in space.parameters
        else {}
    )
    for values in itertools.product(*shapes.values()):
        settings: Row = {**dict(zip(shapes, values, strict=True)), **extra, "batch_size": 64,
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


def one_seed(args: argparse.Namespace, seed: int, best: float, world: SimulatedWorld) -> Row:
    """A simulated search and both of its promotions."""
    with tempfile.TemporaryDirectory() as folder:
        settings = settings_for(args, Path(folder), seed)
        started = time.perf_counter()
        found = search(settings, Hooks())
        seconds = time.perf_counter() - started
        with Store.open(settings.storage) as store:
            study = store.study()
            runs = {run.number: run for run in store.runs(study.id, kind="trial")}
            fit = fit_study(study, store.runs(study.id), args.scale)
            spent = store.ledger(study.id).spent.flops(study.convention)  # type: ignore[arg-type]
    assert found.best is not None
    row: Row = {"seed": seed, "refusal": fit.refusal, "seconds": seconds,
                "budgets": spent / int(args.budget)}  # fmt: skip
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
            "regret": float(row[name]["loss"] - best),
            "lr_off": promoted.max_lr / tuned,
            "batch_off": promoted.tokens_per_step
            / world.best_batch_tokens(float(promoted.total_tokens)),
        }
    return row


def settings_for(args: argparse.Namespace, folder: Path, seed: int) -> SearchSettings:
    """The search of one seed."""
    return SearchSettings(
        storage=folder / "study.db",
        budget_flops=int(args.budget),
        trials=args.trials,
        rungs=Rungs.parse(args.rungs, args.trunks),
        for_scale=None if args.measured_only else args.scale,
        sampler=args.sampler,
        simulate=args.world,
        seed=seed,
    )


def markdown(rows: list[Row], args: argparse.Namespace, facts: Row, best: Row) -> str:
    """The table for people."""
    inside = [r[name]["inside"] for r in rows for name in ("predicted", "measured")
              if "inside" in r[name]]  # fmt: skip
    trunks = f" as trunks with a cooldown of {args.trunks}" if args.trunks else ""
    lines = [
        f"# Which trial to promote: {args.world}, {args.budget:.0e} to ×{args.scale:g}", "",
        f"`{facts['command']}`; {facts['machine']}, commit {facts['commit']}. {len(rows)} seeds of "
        f"{args.trials} trials, rungs {args.rungs}{trunks}, sampler {args.sampler}. Best possible: "
        f"{best['loss']:.3f} nats with {best['n_params'] / 1e6:.3g} M parameters. Simulated: "
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
    refused = sum(r["refusal"] is not None for r in rows)
    lines += ["", f"The 80 % interval held {sum(inside)} of {len(inside)} promoted losses. "
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
    parser.add_argument("--trunks", nargs="?", const=COOLDOWN, metavar="COOLDOWN",
                        help="rungs below 1 are cooldown branches of the trials")  # fmt: skip
    parser.add_argument("--budget", type=float, default=1e15)
    parser.add_argument("--scale", type=float, default=100.0)
    parser.add_argument("--sampler", default="tpe")
    parser.add_argument("--measured-only", action="store_true",
                        help="search for the best at the budget, without --for-scale")  # fmt: skip
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    args = parser.parse_args()
    world = world_named(args.world)
    with tempfile.TemporaryDirectory() as folder:
        settings = settings_for(args, Path(folder), 0)
        limits = Limits(int(args.scale * args.budget), settings.convention)
        loss, config = best_possible(world, settings.resolved_space(), settings.base(), limits)
    best = {"loss": loss, "n_params": config.n_params, "config": config.to_dict()}
    print(f"best possible: {loss:.4f} with {config.n_params / 1e6:.3g} M parameters", flush=True)
    rows = []
    for seed in range(args.seeds):
        rows.append(one_seed(args, seed, loss, world))
        r = rows[-1]
        shown = {n: {k: round(v, 3) for k, v in r[n].items()} for n in ("predicted", "measured")}
        print(seed, r["refusal"] or "", shown, flush=True)
    facts = about("python -m benchmarks.promotion " + " ".join(sys.argv[1:]))
    text = markdown(rows, args, facts, best)
    trunks = "_trunks" if args.trunks else ""
    name = f"promotion_{args.world.split('-')[0]}_{args.sampler}{trunks}"
    write_results(args.out, name, {**facts, "best": best, "rows": rows}, text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
