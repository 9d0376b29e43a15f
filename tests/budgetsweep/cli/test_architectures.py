"""Encoder and encoder-decoder from the command line: train, measure, write, refuse."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from budgetsweep.config import dump_yaml
from model.encoder_decoder import EncoderDecoderLM
from tests.support.commands import run
from tests.trainer.test_objectives import encoder_config, pair_config
from trainer.data.tokenizers import ByteTokenizer
from trainer.export.trained import open_trained

WORDS = ["tea", "dog", "cat", "sun", "hat", "cup", "pen", "map"]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small wikihowAll.csv, a run of each architecture trained on it by the command line."""
    folder = tmp_path_factory.mktemp("architectures")
    with (folder / "wikihowAll.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_ALL)
        writer.writerow(["headline", "title", "text"])
        for i in range(400):
            word = WORDS[i % len(WORDS)]
            writer.writerow([f"Use a {word}.", f"How to find a {word} {i} times", f"{word} " * 9])
    for name, config in (("pairs", pair_config()), ("masked", encoder_config())):
        data = config.to_dict()
        data["data"] = {"source": str(folder / "wikihowAll.csv")}
        data["output_dir"] = str(folder / name)
        (folder / f"{name}.yaml").write_text(dump_yaml(data), encoding="utf-8")
        run_in(folder, "train", f"{name}.yaml")
    return folder


def run_in(folder: Path, *words: str) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BUDGETSWEEP_CACHE", str(folder / "cache"))
        patch.chdir(folder)
        return run(*words)


@pytest.mark.parametrize(
    ("name", "what"), [("pairs", "target tokens"), ("masked", "masked tokens")]
)
def test_a_trained_model_is_measured_as_it_was_trained(folder: Path, name: str, what: str) -> None:
    reported = json.loads((folder / name / "eval.json").read_text())
    again = json.loads(run_in(folder, "evaluate", name, "--json"))
    assert again["loss_nats"] == pytest.approx(reported["val-loss"], rel=1e-6)
    assert what in run_in(folder, "evaluate", name)
    whole = json.loads(run_in(folder, "evaluate", name, "--data", "wikihowAll.csv", "--json"))
    assert whole["n_tokens"] > again["n_tokens"]


def test_the_encoder_decoder_writes_targets(folder: Path) -> None:
    sources = ["How to find a tea\nUse a tea.", "", "a source that is longer than its positions"]
    lines = [json.dumps({"prefix": source}) for source in sources]
    (folder / "sources.jsonl").write_text("\n".join(lines), encoding="utf-8")
    run_in(
        folder, "generate", "pairs", "--prefixes", "sources.jsonl", "--max-new-tokens", "8",
        "--temperature", "0", "--temperature", "1", "--out", "out.jsonl",
    )  # fmt: skip
    samples = [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]
    assert len(samples) == 6
    assert {sample["prefix"] for sample in samples} == set(sources)
    greedy = [sample["generation"] for sample in samples if sample["temperature"] == 0]
    model = open_trained(folder / "pairs", CPU).model.eval()
    assert isinstance(model, EncoderDecoderLM)
    for source, text in zip(sources, greedy, strict=True):
        ids = torch.tensor([ByteTokenizer().encode(source)[:12] or [256]])
        written = [256]
        for _ in range(8):
            written.append(int(model(ids, torch.tensor([written]))[0, -1].argmax()))
        end = [*written, 256].index(256, 1)
        assert text == ByteTokenizer().decode(written[1:end])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate", "masked", "--prefixes", "p.jsonl"], "holds an encoder, which names masked"),
        (["convert", "pairs", "--to", "gpt2", "-o", "x"], "holds an encoder-decoder, expected a"),
        (["convert", "masked", "--to", "pt", "-o", "x"], "holds an encoder, expected a decoder"),
        (["evaluate", "pairs", "--data", "text.txt"], "running text, but an encoder-decoder"),
        (["evaluate", "pairs", "--seq-len", "4"], "--seq-len: pairs holds an encoder-decoder"),
        (
            ["generate", "pairs", "--prefixes", "p.jsonl", "--max-new-tokens", "9"],
            "--max-new-tokens 9: the model has positions for targets of 8 tokens",
        ),
        (["evaluate", "swapped"], "model.pt: does not fit the model ("),
        (["train", "bad.yaml"], "an encoder-decoder needs source_len"),
    ],
)
def test_what_an_architecture_cannot_do_is_said_in_a_line(
    folder: Path,
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    refused: Callable[..., str],
) -> None:
    (folder / "p.jsonl").write_text('{"prefix": "x"}\n')
    (folder / "text.txt").write_text("running text " * 50)
    swapped = folder / "swapped"
    swapped.mkdir(exist_ok=True)
    (swapped / "config.yaml").write_bytes((folder / "pairs" / "config.yaml").read_bytes())
    (swapped / "model.pt").write_bytes((folder / "masked" / "model.pt").read_bytes())
    bad: dict[str, Any] = pair_config().to_dict()
    del bad["source_len"]
    (folder / "bad.yaml").write_text(dump_yaml(bad), encoding="utf-8")
    monkeypatch.setenv("BUDGETSWEEP_CACHE", str(folder / "cache"))
    monkeypatch.chdir(folder)
    assert message in refused(*arguments)


def test_the_costs_of_each_architecture_are_explained(folder: Path) -> None:
    for name, key in (("pairs", "flops_per_pair"), ("masked", "flops_per_sequence")):
        facts = json.loads(run_in(folder, "flops", f"{name}.yaml", "--no-measure", "--json"))
        per_step = {c: sum(parts.values()) * 8 for c, parts in facts[key].items()}
        assert facts["train_flops"] == {c: per_step[c] * 20 for c in per_step}
        text = run_in(folder, "flops", f"{name}.yaml", "--no-measure")
        assert f"FLOPs per {key.removeprefix('flops_per_')}" in text
        assert ("prepared pairs" in text) == (name == "pairs")
