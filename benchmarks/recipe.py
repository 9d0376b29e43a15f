"""What each option of the decoder is worth at equal training FLOPs.

    python -m benchmarks.recipe --data 'train-*.jsonl.xz' --val-data validation.jsonl.xz \
        [--budget 3e12] [--seeds 3] [--only modern,gpt2] [--workers 2] [--runs FILE] [--out FOLDER]

Every variant gets the same budget, counted in its convention by the run's own meter, the same text
and the same validation tokens; each worker computes with one thread. A variant is the modern recipe
with one thing changed, or the GPT-2 recipe with one option added; `student` is the best
configuration of a course at 1e15, its steps scaled down.

FILE keeps what was trained, with all settings. A run is not trained again where one of the same
settings is there, and a row of the table counts runs by their settings, never by the name they were
trained under: so a recipe that changes takes no run along that it did not make.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT, about, write_results
from model.config import ModelConfig

Settings = dict[str, Any]

SHAPES: dict[str, Settings] = {
    "1e12": {"n_embd": 48, "n_layer": 2, "n_head": 3, "batch_size": 16},
    "3e12": {"n_embd": 64, "n_layer": 2, "n_head": 4, "batch_size": 16},
    "1e13": {"n_embd": 80, "n_layer": 2, "n_head": 5, "batch_size": 32},
    "1e14": {"n_embd": 128, "n_layer": 4, "n_head": 4, "batch_size": 64},
}
"""Shape and batch of a search's first proposal at a budget; every variant has them but those that
change them."""
COMMON: Settings = {
    "seq_len": 128,
    "n_positions": 128,
    "p_dropout": 0.0,
    "max_lr": 1.2e-2,
    "min_lr_ratio": 0.0,
    "warmup_fraction": 0.05,
    "weight_decay": 0.1,
    "num_evals": 1,
}
PLAIN = {"recipe": "gpt2", "schedule": "linear"}
VARIANTS: dict[str, Settings] = {
    "modern": {},
    "gpt2": PLAIN,
    "gpt2 + head bias": {**PLAIN, "head_bias": "unigram"},
    "gpt2 + sampled softmax": {**PLAIN, "head_samples": 1024},
    "gpt2 + RoPE": {**PLAIN, "positions": "rope"},
    "gpt2 + RMSNorm": {**PLAIN, "norm": "rms"},
    "gpt2 + no biases": {**PLAIN, "bias": False},
    "gpt2 + Muon": {**PLAIN, "optimizer": "muon"},
    "gpt2 + QK-norm": {**PLAIN, "qk_norm": True},
    "gpt2 + ReLU²": {**PLAIN, "activation": "relu2"},
    "gpt2 + zero init": {**PLAIN, "zero_init": True},
    "gpt2 + cosine to 0.1": {"recipe": "gpt2", "min_lr_ratio": 0.1},
    "no head bias": {"head_bias": "none"},
    "full softmax": {"head_samples": None},
    "learned positions": {"positions": "learned"},
    "RMSNorm": {"norm": "rms"},
    "no biases": {"bias": False},
    "RMSNorm + no biases": {"norm": "rms", "bias": False},
    "AdamW only": {"optimizer": "adamw"},
    "QK-norm": {"qk_norm": True},
    "ReLU²": {"activation": "relu2"},
    "zero init": {"zero_init": True},
    "cosine to 0.1": {"schedule": "cosine", "min_lr_ratio": 0.1},
    "wsd": {"schedule": "wsd"},
    "wsd + cooldown 1/4": {"schedule": "wsd", "cooldown_fraction": 0.25},
    "wsd + cooldown 3/4": {"schedule": "wsd", "cooldown_fraction": 0.75},
    "wsd + lr × 1/2": {"schedule": "wsd", "max_lr": 6e-3},
    "wsd + lr × 2": {"schedule": "wsd", "max_lr": 2.4e-2},
    "256 samples": {"head_samples": 256},
    "512 samples": {"head_samples": 512},
    "2048 samples": {"head_samples": 2048},
    "4096 samples": {"head_samples": 4096},
    "2048 samples + lr × 1/2": {"head_samples": 2048, "max_lr": 6e-3},
    "batch 8": {"batch_size": 8},
    "batch 16": {"batch_size": 16},
    "batch 32": {"batch_size": 32},
    "batch 64": {"batch_size": 64},
    "lr × 1/2": {"max_lr": 6e-3},
    "lr × 2": {"max_lr": 2.4e-2},
    "no decay": {"weight_decay": 0.0},
    "beta2 0.99": {"beta2": 0.99},
    "heads of 16": {"head_dim": 16},
    "sequences of 256": {"seq_len": 256, "n_positions": 256, "batch_size": 8},
    "sequences of 64": {"seq_len": 64, "n_positions": 64, "batch_size": 32},
    "D48 L2": {"n_embd": 48, "n_layer": 2, "n_head": 3},
    "D64 L1": {"n_embd": 64, "n_layer": 1, "n_head": 2},
    "D64 L2": {"n_embd": 64, "n_layer": 2, "n_head": 2},
    "D64 L4": {"n_embd": 64, "n_layer": 4, "n_head": 2},
    "D96 L2": {"n_embd": 96, "n_layer": 2, "n_head": 3},
    "D96 L3": {"n_embd": 96, "n_layer": 3, "n_head": 3},
    "D96 L6": {"n_embd": 96, "n_layer": 6, "n_head": 3},
    "D128 L4": {"n_embd": 128, "n_layer": 4, "n_head": 4},
    "D192 L4": {"n_embd": 192, "n_layer": 4, "n_head": 6},
    "D192 L6": {"n_embd": 192, "n_layer": 6, "n_head": 6},
    "D256 L8": {"n_embd": 256, "n_layer": 8, "n_head": 8},
    "student": {
        "recipe": "gpt2", "n_embd": 96, "n_head": 16, "n_layer": 6, "seq_len": 32,
        "n_positions": 32, "batch_size": 64, "grad_accumulation_steps": 3, "max_lr": 5e-4,
        "min_lr": 1e-4, "min_lr_ratio": None, "p_dropout": 0.1,
    },
}  # fmt: skip
_SHAPE_KEYS = frozenset(ModelConfig.model_fields) - {"n_vocab"}


def run_data(variant: str, budget: float, seed: int, data: Settings) -> Settings:
    """Plain data of a variant's run configuration."""
    scale = min(SHAPES, key=lambda name: abs(float(name) - budget))
    settings: Settings = {"recipe": "modern", **COMMON, **SHAPES[scale], **VARIANTS[variant]}
    if "head_dim" in settings:
        settings["n_head"] = settings["n_embd"] // settings.pop("head_dim")
    shape = {name: settings.pop(name) for name in list(settings) if name in _SHAPE_KEYS}
    dropped = {name for name, value in settings.items() if value is None and name != "head_samples"}
    settings = {name: value for name, value in settings.items() if name not in dropped}
    return {
        **settings,
        "model_config": shape,
        "data": data,
        "device": "cpu",
        "seed": seed,
        "budget_flops": int(budget),
        "num_training_steps": "fill",
    }


def configured(variant: str, budget: float, seed: int = 0, data: Settings | None = None) -> Any:
    """The filled configuration of a variant's run."""
    from budgetsweep.config import parse
    from budgetsweep.constraint import fill
    from trainer.config import RunConfig

    return fill(parse(RunConfig, run_data(variant, budget, seed, data or {}), variant))


def settings_of(config: Any) -> Settings:
    """What decides a run beside its text and seed: every setting, wherever it came from."""
    unlike = {"recipe", "output_dir", "data", "seed"}
    settings: Settings = config.model_dump(mode="json", by_alias=True, exclude=unlike)
    return settings


def train(variant: str, budget: float, seed: int, data: Settings) -> Settings:
    """Train one variant in this process; what is kept of it."""
    import torch

    from budgetsweep.constraint import planned_flops
    from trainer.data.prepare import open_prepared
    from trainer.loop import train_run

    torch.set_num_threads(1)
    config = configured(variant, budget, seed, data)
    tokens = open_prepared(config.data, config.tokenizer_encoding)
    started = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        run = train_run(config, tokens, Path(folder) / "run")
        while True:
            try:
                next(run)
            except StopIteration as stop:
                result = stop.value
                break
    return {
        "variant": variant,
        "budget": budget,
        "seed": seed,
        "val_loss_nats": result.val_loss_nats,
        "reason": result.reason,
        "tokens": config.total_tokens,
        "steps": config.steps,
        "n_params": config.n_params,
        "flops": planned_flops(config),
        "cpu_seconds": time.process_time() - started,
        "settings": settings_of(config),
    }


def prepared(args: argparse.Namespace) -> Settings:
    """Tokens of the text, prepared once; the data section of every run."""
    from trainer.data.config import DataConfig
    from trainer.data.prepare import prepare

    wanted = DataConfig(source=args.data, validation=args.val_data)
    tokens = prepare(wanted, "gpt2", train_tokens=args.train_tokens, val_tokens=args.val_tokens)
    fixed = wanted.fixed_to(tokens, args.train_tokens, args.val_tokens)
    return fixed.model_dump(mode="json", exclude_none=True)


def read_runs(path: Path, budget: float) -> list[Settings]:
    """Runs of a budget that were trained before, each under the variant that it is now."""
    if not path.exists():
        return []
    now = [(name, settings_of(configured(name, budget))) for name in VARIANTS]
    runs = []
    for line in path.read_text(encoding="utf-8").splitlines():
        run = json.loads(line)
        if run["budget"] == budget:
            names = [name for name, settings in now if settings == run.get("settings")]
            runs += [{**run, "variant": name} for name in names]
    return runs


def train_missing(args: argparse.Namespace, variants: list[str]) -> list[Settings]:
    """Append the runs that the file lacks; all of this budget."""
    have = {(r["variant"], r["seed"]) for r in read_runs(args.runs, args.budget)}
    todo = [(v, s) for s in range(args.seeds) for v in variants if (v, s) not in have]
    if todo:
        data = prepared(args)
        args.runs.parent.mkdir(parents=True, exist_ok=True)
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(args.workers, mp_context=context) as pool:
            futures = [pool.submit(train, v, args.budget, s, data) for v, s in todo]
            for number, future in enumerate(as_completed(futures), 1):
                run = future.result()
                with args.runs.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(run) + "\n")
                loss = run["val_loss_nats"]
                print(
                    f"{number}/{len(todo)} {run['variant']}, seed {run['seed']}: "
                    f"{'failed' if loss is None else f'{loss:.4f}'}, "
                    f"{run['cpu_seconds']:.0f} CPU seconds",
                    flush=True,
                )
    return read_runs(args.runs, args.budget)


def table(runs: list[Settings]) -> list[Settings]:
    """A row a variant, the best first; differences from `modern` are of equal seeds."""
    by_seed = {r["seed"]: r["val_loss_nats"] for r in runs if r["variant"] == "modern"}
    rows: list[Settings] = []
    told: list[Settings] = []
    for variant in VARIANTS:
        mine = [r for r in runs if r["variant"] == variant and r["val_loss_nats"] is not None]
        if not mine or mine[0]["settings"] in told:  # some are the recipe itself at some budgets
            continue
        told.append(mine[0]["settings"])
        losses = [r["val_loss_nats"] for r in mine]
        gaps = [r["val_loss_nats"] - by_seed[r["seed"]] for r in mine if r["seed"] in by_seed]
        seconds = [r["cpu_seconds"] for r in mine if "cpu_seconds" in r]
        rows.append({
            "variant": variant,
            "n": len(mine),
            "losses": {str(r["seed"]): r["val_loss_nats"] for r in mine},
            "loss": statistics.fmean(losses),
            "spread": [min(losses), max(losses)],
            "gap": statistics.fmean(gaps) if gaps else None,
            "gaps": [min(gaps), max(gaps)] if gaps else None,
            "tokens": mine[0]["tokens"],
            "n_params": mine[0]["n_params"],
            "cpu_seconds": statistics.median(seconds) if seconds else None,
        })  # fmt: skip
    return sorted(rows, key=lambda row: row["loss"])


def markdown(rows: list[Settings], budget: float, facts: Settings) -> str:
    """The table for people."""
    lines = [
        f"# What each option is worth at {budget:.0e} training FLOPs (`nanogpt`)",
        "",
        f"{facts['machine']}, torch {facts['versions']['torch']}, commit {facts['commit']}; one "
        "thread a run. Loss in nats on the validation split (lowest to highest seed); the "
        "difference is from `modern` with the same seed.",
        "",
        "| variant | n | val loss | difference | tokens | parameters | CPU s |",
        "|---|---:|---|---|---:|---:|---:|",
    ]
    for row in rows:
        gap = "" if row["gap"] is None else f"{row['gap']:+.3f}"
        if row["gaps"] and row["n"] > 1:
            gap += f" ({row['gaps'][0]:+.3f} to {row['gaps'][1]:+.3f})"
        took = "" if row["cpu_seconds"] is None else f"{row['cpu_seconds']:.0f}"
        spread = f" ({row['spread'][0]:.3f} to {row['spread'][1]:.3f})" if row["n"] > 1 else ""
        lines.append(
            f"| {row['variant']} | {row['n']} | {row['loss']:.3f}{spread} | {gap} | "
            f"{row['tokens']:,} | {row['n_params']:,} | {took} |"
        )
    return "\n".join(lines) + "\n"


def main() -> int:
    """Train what is missing and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--val-data")
    parser.add_argument("--train-tokens", type=int, default=8_000_000)
    parser.add_argument("--val-tokens", type=int, default=65_536)
    parser.add_argument("--budget", type=float, default=3e12)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", help="variants, separated by commas")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--runs", type=Path, default=ROOT / "build" / "recipe-runs.jsonl")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    args = parser.parse_args()
    variants = args.only.split(",") if args.only else list(VARIANTS)
    unknown = [name for name in variants if name not in VARIANTS]
    if unknown:
        parser.error(f"unknown variant {unknown[0]!r}; there are {', '.join(VARIANTS)}")
    runs = train_missing(args, variants)
    rows, facts = table(runs), about("python -m benchmarks.recipe")
    name = f"recipe_{args.budget:.0e}".replace("+", "")
    text = markdown(rows, args.budget, facts)
    write_results(args.out, name, {**facts, "budget": args.budget, "rows": rows}, text)
    sys.stdout.write(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
