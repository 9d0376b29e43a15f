"""`budgetsweep flops`: what a configuration costs, laid out for a person."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from budgetsweep.cli.options import FILE, Flops, json_option, set_option
from budgetsweep.cli.train import run_config
from budgetsweep.errors import DataError
from budgetsweep.formats import count, duration, flops, gib

if TYPE_CHECKING:
    from rich.console import Console

    from trainer.config import Architecture, RunConfig
    from trainer.data.shards.tokens import TokenData

FLOPS_OF: dict[Architecture, str] = {
    "decoder": "flops_per_token",
    "encoder": "flops_per_sequence",
    "encoder-decoder": "flops_per_pair",
}
"""What the FLOPs are counted of, as the key of the facts."""


@click.command("flops")
@click.argument("config", type=FILE)
@click.option("--budget", type=Flops(), help="Budget to compare with.")
@click.option("--no-measure", is_flag=True, help="Do not measure this device.")
@json_option
@set_option
def flops_command(
    config: Path, budget: int | None, no_measure: bool, as_json: bool, overrides: tuple[str, ...]
) -> None:
    """Explain what a configuration costs: parameters, FLOPs, tokens, memory, time."""
    from trainer.hardware.environment import prepare_environment

    run = run_config(config, budget, overrides)
    prepare_environment()
    from budgetsweep.cli.display import new_console

    facts, console = _explain(run, measure=not no_measure), new_console()
    if as_json:
        console.print_json(data=facts)
    else:
        _print_explanation(facts, console)


def _explain(config: RunConfig, *, measure: bool) -> dict[str, Any]:
    """Facts about a configuration's cost, as plain data; measuring the device loads torch."""
    from budgetsweep.constraint import affordable_steps, epochs, fill, planned_flops
    from model.flops import Convention, params_by_group

    config = fill(config)
    facts: dict[str, Any] = {
        "params": params_by_group(config.model),
        "n_params": config.n_params,
        "architecture": config.architecture,
        FLOPS_OF[config.architecture]: {name: config.flops_by_part(name) for name in Convention},
        "optimizer_flops_per_step": {
            name: config.optimizer_flops_per_step(name) for name in Convention
        },
        "head_samples": config.head_samples,
        "steps": config.steps,
        "tokens_per_step": config.tokens_per_step,
        "tokens": config.total_tokens,
        "tokens_per_param": config.total_tokens / config.n_params,
        "train_flops": planned_flops(config),
        "convention": config.convention,
        "budget_flops": config.budget_flops,
        "budget_share": None,
        "affordable_steps": None,
        "epochs": None,
        "train_tokens_prepared": None,
        "train_pairs_prepared": None,
        "device": None,
        "memory_bytes": None,
        "seconds": None,
    }
    if config.budget_flops is not None:
        facts["budget_share"] = planned_flops(config)[config.convention] / config.budget_flops
        facts["affordable_steps"] = affordable_steps(config, config.budget_flops, config.convention)
    prepared = _prepared(config)
    if prepared is not None:
        facts["train_tokens_prepared"] = len(prepared.train)
        n_pairs = prepared.facts().train_pairs
        facts["train_pairs_prepared"] = n_pairs
        facts["epochs"] = epochs(config, len(prepared.train), n_pairs)
    if measure:
        facts.update(_on_this_device(config))
    return facts


def _prepared(config: RunConfig) -> TokenData | None:
    """The run's data as far as they are prepared; None when none are."""
    from trainer.data.prepare import open_prepared

    try:
        return open_prepared(config.data, config.tokenizer_encoding)
    except DataError:
        return None


def _on_this_device(config: RunConfig) -> dict[str, Any]:
    from budgetsweep.constraint import Limits, uses_bf16
    from trainer.hardware.device import detect_device
    from trainer.memory import estimate_memory_bytes
    from trainer.throughput import measure_tokens_per_second

    device = detect_device(config.device)
    bf16 = uses_bf16(config, Limits(1, device=device))
    memory = estimate_memory_bytes(config, device.kind, bf16=bf16)
    facts: dict[str, Any] = {
        "device": device.name,
        "memory_bytes": memory,
        "device_memory_bytes": device.memory_bytes,
    }
    if memory <= device.memory_bytes:
        facts["seconds"] = config.total_tokens / measure_tokens_per_second(config, 1.0)
    return facts


def _print_explanation(facts: dict[str, Any], console: Console) -> None:
    from budgetsweep.cli.display import columns

    groups = columns("parameters", "", "share")
    for name, number in facts["params"].items():
        groups.add_row(name, f"{number:,}", f"{100 * number / facts['n_params']:.1f} %")
    groups.add_row("all", f"{facts['n_params']:,}", "", style="bold")
    console.print(groups)
    console.print()
    key = FLOPS_OF[facts["architecture"]]
    for convention, parts in facts[key].items():
        total = sum(parts.values())
        what = key.removeprefix("flops_per_").replace("_", " ")
        table = columns(f"FLOPs per {what} ({convention})", "", "share")
        for name, number in parts.items():
            table.add_row(name, f"{number:,}", f"{100 * number / total:.1f} %")
        table.add_row("all", f"{total:,}", "", style="bold")
        console.print(table)
        console.print()
    _print_totals(facts, console)


def _print_totals(facts: dict[str, Any], console: Console) -> None:
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    table.add_row(
        "tokens",
        f"{facts['tokens']:,} ({facts['steps']:,} steps of {facts['tokens_per_step']:,}), "
        f"{facts['tokens_per_param']:.2f} per parameter",
    )
    if facts["head_samples"] is not None:
        table.add_row(
            "sampled softmax",
            f"training compares a token with {facts['head_samples']:,} vocabulary entries and its "
            "target; evaluation uses the full softmax",
        )
    own = facts["optimizer_flops_per_step"][facts["convention"]]
    if own:
        share = own * facts["steps"] / facts["train_flops"][facts["convention"]]
        table.add_row("optimiser's products", f"{own:,} FLOPs per step, {100 * share:.1f} % of all")
    for convention, total in facts["train_flops"].items():
        table.add_row(f"training FLOPs, {convention}", f"{total:,} ({total:.4e})")
    if facts["budget_flops"] is not None:
        share = facts["budget_share"]
        verdict = "within" if share <= 1 else "OVER"
        table.add_row(
            f"budget, {facts['convention']}",
            f"{flops(facts['budget_flops'])}: {100 * share:.2f} % used, {verdict} the budget; "
            f"it affords {facts['affordable_steps']:,} steps",
        )
    if facts["architecture"] == "encoder-decoder" and facts["train_pairs_prepared"] is not None:
        table.add_row(
            "epochs of the data",
            f"{facts['epochs']:.2f} of {facts['train_pairs_prepared']:,} prepared pairs",
        )
    elif facts["epochs"] is None:
        table.add_row("epochs of the data", "unknown until the data are prepared")
    else:
        table.add_row(
            "epochs of the data",
            f"{facts['epochs']:.2f} of {count(facts['train_tokens_prepared'])} prepared tokens",
        )
    if facts["device"] is not None:
        table.add_row(
            "memory",
            f"about {gib(facts['memory_bytes'])} of {gib(facts['device_memory_bytes'])} "
            f"on {facts['device']}",
        )
        if facts["seconds"] is None:
            table.add_row("time here", "does not fit in memory")
        else:
            table.add_row("time here", f"about {duration(facts['seconds'])} (measured speed)")
    console.print(table)
