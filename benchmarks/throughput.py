"""Training speed on a CPU beside others: `python -m benchmarks.throughput`.

    python -m benchmarks.throughput [--shapes D128L4,D256L8] [--n 5] [--seconds 4] [--out FOLDER]

Every contender (`benchmarks.contenders`) trains the same shape on random tokens of GPT-2's
vocabulary, T = 256. Each lives in a process of its own, warmed up, and sleeps while another trains.
In each of n rounds all train for so many seconds, one after the other, in an order that rotates
from round to round, so that none always has the same neighbours or the quietest minute. Ratios are
of speeds in the same round.

Useful arithmetic is every matrix product by its shapes, 6 FLOPs per parameter and token and
12 * L * D * T for attention (the `matmul` convention), whatever a contender really computes.
"""

from __future__ import annotations

import argparse
import multiprocessing
import re
import statistics
import sys
from importlib import metadata
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT, about, write_results
from benchmarks.contenders import CONTENDERS, N_VOCAB, SEQ_LEN, serve
from model.config import ModelConfig
from model.flops import flops_per_token

OURS = "ours, batch 8"
"""What ratios are of: the batch of the others."""
BARS = {"HF Trainer, defaults": 4.0, "HF Trainer, bf16 + compile": 2.0}
"""How many times as fast we were to be."""


def measure(name: str, width: int, layers: int, n: int, seconds: float) -> list[dict[str, Any]]:
    """Tokens per second of each contender and round at one shape."""
    context = multiprocessing.get_context("spawn")
    pipes: dict[str, Connection] = {}
    processes = []
    speeds: dict[str, list[float]] = {contender: [] for contender in CONTENDERS}
    try:
        for contender in CONTENDERS:
            pipes[contender], theirs = context.Pipe()
            process = context.Process(target=serve, args=(theirs, contender, width, layers))
            process.start()
            processes.append(process)
            theirs.close()
            ask(pipes[contender], contender, seconds)  # start, compile, warm up
        for number in range(n):
            order = list(CONTENDERS)
            order = order[number % len(order) :] + order[: number % len(order)]
            for contender in order:
                speeds[contender].append(ask(pipes[contender], contender, seconds))
                print(f"{name} round {number + 1}: {speeds[contender][-1]:8,.0f} tokens/s  "
                      f"{contender}", file=sys.stderr, flush=True)  # fmt: skip
        for pipe in pipes.values():
            pipe.send(None)
    except BaseException:
        for process in processes:
            process.kill()
        raise
    finally:
        for process in processes:
            process.join()
    return [row(name, width, layers, contender, speeds) for contender in CONTENDERS]


def ask(pipe: Connection, contender: str, seconds: float) -> float:
    """Let a contender train; its tokens per second."""
    try:
        pipe.send(seconds)
        answer = pipe.recv()
    except (EOFError, OSError):
        raise SystemExit(f"{contender}: its process ended; see its message above") from None
    if isinstance(answer, str):
        raise SystemExit(f"{contender}: {answer}")
    tokens, took = answer
    return tokens / took


def row(
    name: str, width: int, layers: int, contender: str, speeds: dict[str, list[float]]
) -> dict[str, Any]:
    """What the table says of a contender."""
    shape = ModelConfig(
        n_vocab=N_VOCAB, n_embd=width, n_head=width // 32, n_positions=SEQ_LEN, n_layer=layers
    )
    mine = speeds[contender]
    ratios = [ours / theirs for ours, theirs in zip(speeds[OURS], mine, strict=True)]
    same = "recipe" not in CONTENDERS[contender].settings
    per_token = flops_per_token(shape, SEQ_LEN, "matmul")
    return {
        "shape": name,
        "contender": contender,
        "tokens_per_second": mine,
        "median": statistics.median(mine),
        "ours_over_it": ratios if same else None,
        "tflops": statistics.median(mine) * per_token / 1e12 if same else None,
    }


def markdown(rows: list[dict[str, Any]], facts: dict[str, Any]) -> str:
    """The tables and how far the bars are."""
    lines = [
        "# Training speed on a CPU",
        "",
        f"{facts['machine']}, torch {facts['versions']['torch']}, transformers "
        f"{facts['versions']['transformers']}, commit {facts['commit']}. `{facts['command']}`. "
        f"T = {SEQ_LEN}, vocabulary {N_VOCAB:,}; median (lowest to highest) of n = {facts['n']} "
        f"interleaved rounds of {facts['seconds']:g} s. The ratio is our speed at batch 8 over the "
        f"contender's, round by round. A bf16 product of 2048 x 2048 matrices ran at "
        f"{facts['bf16_product_tflops']:.2f} TFLOP/s in the same minutes.",
    ]
    for name in dict.fromkeys(each["shape"] for each in rows):
        lines += ["", f"## {name}", "",
                  "| | tokens/s | ours is so many times as fast | useful TFLOP/s |",
                  "|---|---:|---:|---:|"]  # fmt: skip
        for each in (each for each in rows if each["shape"] == name):
            speeds, ratios = each["tokens_per_second"], each["ours_over_it"]
            cells = [each["contender"], spread(speeds, ",.0f")]
            cells += [spread(ratios, ".2f") if ratios else "another computation"]
            cells += [f"{each['tflops']:.3f}" if ratios else ""]
            lines.append("| " + " | ".join(cells) + " |")
        for contender, bar in BARS.items():
            (there,) = (e for e in rows if (e["shape"], e["contender"]) == (name, contender))
            ratio = statistics.median(there["ours_over_it"])
            lines += ["", f"Against {contender}: {ratio:.2f} times, the bar is {bar:g}: "
                      f"{'reached' if ratio >= bar else 'not reached'}."]  # fmt: skip
    return "\n".join(lines) + "\n"


def spread(values: list[float], form: str) -> str:
    """Median (lowest to highest)."""
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def bf16_product_tflops(pipe: Connection) -> None:
    """Send what a product of two bf16 matrices reaches here, 2048 x 2048, best of 20."""
    import time

    import torch

    matrix = torch.randn(2048, 2048).bfloat16()
    took = []
    for _ in range(20):
        started = time.perf_counter()
        matrix @ matrix
        took.append(time.perf_counter() - started)
    pipe.send(2 * 2048**3 / min(took) / 1e12)


def product_speed() -> float:
    """`bf16_product_tflops` in a process of its own, so that this one starts no threads."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=bf16_product_tflops, args=(theirs,))
    process.start()
    speed: float = ours.recv()
    process.join()
    return speed


def shape_of(name: str) -> tuple[int, int]:
    """Width and layers of `D128L4`."""
    match = re.fullmatch(r"D(\d{1,5})L(\d{1,3})", name)
    if not match or int(match[1]) % 32 or not int(match[1]) or not int(match[2]):
        raise argparse.ArgumentTypeError(f"{name}: expected like D128L4, a width of 32s")
    return int(match[1]), int(match[2])


def main() -> int:
    """Measure each shape, print and write its table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--shapes", default="D128L4,D256L8")
    parser.add_argument("--n", type=int, default=5, help="rounds")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each contender in a round")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    options = parser.parse_args()
    try:
        shapes = {name: shape_of(name) for name in options.shapes.split(",")}
        versions = {name: metadata.version(name) for name in ("transformers", "accelerate")}
    except argparse.ArgumentTypeError as error:
        parser.error(str(error))
    except metadata.PackageNotFoundError as error:
        parser.error(f"{error.name} is not installed: pip install -e '.[dev]'")
    if options.n < 1 or not options.seconds > 0:
        parser.error("--n and --seconds: expected more than 0")
    facts = about("python -m benchmarks.throughput " + " ".join(sys.argv[1:]))
    facts = {**facts, "versions": {**facts["versions"], **versions}, "n": options.n,
             "seconds": options.seconds}  # fmt: skip
    for name, (width, layers) in shapes.items():
        product = product_speed()
        rows = measure(name, width, layers, options.n, options.seconds)
        facts["bf16_product_tflops"] = max(product, product_speed())
        text = markdown(rows, facts)
        write_results(options.out, f"throughput_{name}", {**facts, "rows": rows}, text)
        print(text, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
