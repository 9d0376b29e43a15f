"""Generation with a key-value cache against without one: `python -m benchmarks.generation`.

Both ways side by side, in turns, on the same prompts, greedy, 256 new tokens: a freshly initialised
decoder of GPT-2's vocabulary (D128, 4 layers, 512 positions), and an encoder-decoder of its width
(4 + 4 layers) that writes targets for sources. Without a cache each step reads the whole context,
but takes the logits of its last position only: a stronger opponent than code that computes the
logits of all positions. The encoder-decoder's source is encoded once either way; without a cache
its keys and values are computed again for each token. Time is CPU seconds of one thread, which
other work on the machine disturbs less than the clock. Both ways must give the same tokens, or
there is no result.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import ROOT, about, write_results
from model.config import EncoderDecoderConfig, ModelConfig, SamplingConfig
from model.decoder import DecoderLM
from model.encoder_decoder import EncoderDecoderLM
from model.generation.decoding import Continuation, continue_texts
from model.generation.encoder_decoder import write_targets

TARGET = 5.0
"""Times as fast that the decoder with its cache was to be; the encoder-decoder had no such aim."""
CASES = "1x32,1x256,8x32,8x256"
"""Prompts in a batch x tokens in the longest of them; the others are up to a quarter shorter."""
PAIRS = "1x32,8x32"
"""The same of the encoder-decoder's sources."""

Write = Callable[..., list[Continuation]]
"""`continue_texts` or `write_targets` of a model."""


class Words:
    """A text of numbers is its ids."""

    eot_token = 0

    def encode(self, text: str) -> list[int]:
        """Ids of a text."""
        return [int(word) for word in text.split()]

    def decode(self, ids: Any) -> str:
        """Text of ids."""
        return " ".join(map(str, ids))


def prompts(n: int, longest: int, n_vocab: int) -> list[str]:
    """Random prompts of unequal length, the same each time."""
    generator = torch.Generator().manual_seed(1)
    lengths = [longest - (i * longest // 4) // max(1, n - 1) for i in range(n)]
    return [
        Words().decode(torch.randint(n_vocab, (length,), generator=generator).tolist())
        for length in lengths
    ]


def timed(
    write: Write, texts: list[str], new_tokens: int, *, use_cache: bool
) -> tuple[float, list[Continuation]]:
    """CPU seconds of one way, and what it wrote; an end-of-text token ends nothing."""
    started = time.process_time()
    written = write(
        "cpu", Words(), texts, len(texts), new_tokens, SamplingConfig(),
        stop_at_eot=False, use_cache=use_cache,
    )  # fmt: skip
    return time.process_time() - started, written


def measure_cases(write: Write, cases: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """CPU seconds of each of one model's cases, way and turn."""
    measured = []
    for case in filter(None, cases.split(",")):
        batch_size, longest = map(int, case.split("x"))
        texts = prompts(batch_size, longest, options.vocab)
        for use_cache in (True, False):  # warms up
            timed(write, texts, 2, use_cache=use_cache)
        seconds: dict[str, list[float]] = {"cache": [], "none": []}
        for _ in range(options.repeats):
            with_cache, ours = timed(write, texts, options.new_tokens, use_cache=True)
            without, others = timed(write, texts, options.new_tokens, use_cache=False)
            if ours != others:
                raise SystemExit(f"batch {batch_size}, prompt {longest}: other tokens")
            seconds["cache"].append(with_cache)
            seconds["none"].append(without)
        measured.append(
            {
                "batch_size": batch_size,
                "prompt_tokens": longest,
                "cpu_seconds": seconds,
                "ratio": [a / b for a, b in zip(seconds["none"], seconds["cache"], strict=True)],
            }
        )
    return measured


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """CPU seconds of each model, case, way and turn."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    shape = ModelConfig(
        n_vocab=options.vocab, n_embd=128, n_head=4, n_positions=512, n_layer=4, p_dropout=0.0
    )
    pair_shape = EncoderDecoderConfig(
        n_vocab=options.vocab, n_embd=128, n_head=4, n_source_positions=256,
        n_target_positions=512, n_encoder_layer=4, n_decoder_layer=4, p_dropout=0.0,
    )  # fmt: skip
    decoder = functools.partial(continue_texts, DecoderLM.from_config(shape))
    pair_model = functools.partial(write_targets, EncoderDecoderLM.from_config(pair_shape))
    return {
        **about(
            f"python -m benchmarks.generation --repeats {options.repeats} "
            f"--vocab {options.vocab} --new-tokens {options.new_tokens} "
            f"--cases {options.cases} --pairs {options.pairs}"
        ),
        "shape": shape.model_dump(),
        "pair_shape": pair_shape.model_dump(),
        "new_tokens": options.new_tokens,
        "repeats": options.repeats,
        "target": TARGET,
        "cases": measure_cases(decoder, options.cases, options),
        "pair_cases": measure_cases(pair_model, options.pairs, options),
    }


def render(result: dict[str, Any]) -> str:
    """The result as Markdown: medians, with the lowest and highest turn."""

    def cell(values: list[float], digits: int) -> str:
        low, middle, high = min(values), statistics.median(values), max(values)
        return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"

    def table(what: str, cases: list[dict[str, Any]], target: float | None = None) -> list[str]:
        rows = [
            f"| {what} in the batch | tokens of the longest | with cache, s | without, s | ratio |",
            "|---:|---:|---:|---:|---:|",
        ]
        if target is not None:
            rows = [f"{rows[0]} at least {target:g} |", f"{rows[1]}---|"]
        for case in cases:
            seconds, ratio = case["cpu_seconds"], case["ratio"]
            row = (
                f"| {case['batch_size']} | {case['prompt_tokens']} | {cell(seconds['cache'], 2)} "
                f"| {cell(seconds['none'], 2)} | {cell(ratio, 1)} |"
            )
            if target is not None:
                row += " reached |" if statistics.median(ratio) >= target else " missed |"
            rows.append(row)
        return rows

    shape, pairs = result["shape"], result["pair_shape"]
    lines = [
        "# Generation with a key-value cache against without one",
        "",
        f"{result['new_tokens']} new tokens, greedy, the same tokens both ways; float32, one "
        f"thread. CPU seconds, median of {result['repeats']} turns (lowest to highest). Without a "
        "cache, too, only the last position's logits are computed.",
        "",
        f"Decoder: V{shape['n_vocab']} D{shape['n_embd']} L{shape['n_layer']} "
        f"P{shape['n_positions']}.",
        "",
        *table("prompts", result["cases"], result["target"]),
        "",
        f"Encoder-decoder: V{pairs['n_vocab']} D{pairs['n_embd']} "
        f"L{pairs['n_encoder_layer']}+{pairs['n_decoder_layer']} S{pairs['n_source_positions']} "
        f"T{pairs['n_target_positions']}. The source is encoded once either way; without a cache "
        "its keys and values are computed again for each token.",
        "",
        *table("sources", result["pair_cases"]),
        "",
        f"Machine: {result['machine']}. Commit {result['commit']}. Command: `{result['command']}`.",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure, print and write results/generation.{json,md}."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--vocab", type=int, default=50257)
    parser.add_argument("--new-tokens", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--cases", default=CASES, help="prompts x tokens of the longest, ...")
    parser.add_argument("--pairs", default=PAIRS, help="sources x tokens of the longest, ...")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    options = parser.parse_args()
    result = measure(options)
    report = render(result)
    print(report)
    write_results(options.out, "generation", result, report)


if __name__ == "__main__":
    main()
