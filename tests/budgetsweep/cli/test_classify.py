"""`budgetsweep classify` as a user types it: table and files, one line for mistakes."""

from __future__ import annotations

import csv
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
import torch

from budgetsweep.cli.classify import classify_command
from model.classification import classify_binary_sentiment
from model.generation.decoding import score
from tests.support.commands import run
from tests.support.tiny_runs import write_run
from trainer.data.tokenizers import ByteTokenizer
from trainer.sentiment.classify import TEMPLATE, WORDS, parse_template, parse_words
from trainer.sentiment.labelled import shuffled

FILES = ["classification.json", "histogram.png", "histogram.svg", "predictions.csv"]
N_POSITIONS = 24
TEMPLATE_OF_BYTES = r"R {text}\nis "


def write_reviews(path: Path, n: int = 60) -> list[tuple[str, int]]:
    """Reviews of 1 to 24 bytes, of which those above 16 do not fit."""
    reviews = [(chr(97 + i % 26) * (1 + i * 7 % 24), int(i % 3 == 0)) for i in range(n)]
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *reviews])
    return reviews


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with `run` (a model) and `reviews.csv`."""
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "run", 0.8, seed=1, shape={"n_positions": N_POSITIONS})
    write_reviews(tmp_path / "reviews.csv")
    return tmp_path


WORDS_OF_BYTES = ("--words", "n,p", "--template", TEMPLATE_OF_BYTES, "--device", "cpu")


def classify(*words: str) -> str:
    return run("classify", "run", "--data", "reviews.csv", *WORDS_OF_BYTES, *words)


def facts(folder: str = "classification") -> dict[str, Any]:
    return json.loads((Path(folder) / "classification.json").read_text(encoding="utf-8"))


def test_files_and_figures_are_those_of_the_functions(here: Path) -> None:
    reviews = write_reviews(here / "reviews.csv")
    classify("--limit", "40", "--batch-size", "7")
    assert sorted(path.name for path in Path("classification").iterdir()) == FILES
    with Path("classification/predictions.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    drawn = shuffled(len(reviews), 42)[:40]
    kept = sorted(row for row in drawn if len(f"R {reviews[row][0]}\nis ") <= N_POSITIONS)
    assert 5 < len(kept) < 40
    assert [int(row["row"]) for row in rows] == kept
    labels = [reviews[row][1] for row in kept]
    assert [int(row["label"]) for row in rows] == labels
    model = write_run(here / "again", 0.8, seed=1, shape={"n_positions": N_POSITIONS})
    texts = [f"R {reviews[row][0]}\nis " for row in kept]
    logits = score(model, "cpu", ByteTokenizer(), texts, 7)
    for name, calibrate in (("prediction", False), ("prediction_calibrated", True)):
        expected = classify_binary_sentiment(logits, [110, 112], calibrate)
        assert [int(row[name]) for row in rows] == expected
        assert len(set(expected)) == 2
    found = facts()
    assert (found["n_data"], found["n_drawn"], found["n"]) == (60, 40, len(kept))
    assert found["n_dropped"] == 40 - len(kept)
    assert (found["n_negative"], found["n_positive"]) == (labels.count(0), labels.count(1))
    assert (found["words"], found["tokens"]) == (["n", "p"], [110, 112])
    assert found["template"] == "R {text}\nis "
    assert found["tokenizer"] == "bytes"
    assert found["random_accuracy"] == 0.5
    assert found["majority_accuracy"] == max(labels.count(0), labels.count(1)) / len(kept)
    probabilities = [float(row["p_positive"]) for row in rows]
    for key, name in (("without", "prediction"), ("with", "prediction_calibrated")):
        one = found[f"{key}_calibration"]
        right = [int(row[name]) == label for row, label in zip(rows, labels, strict=True)]
        assert one["n_correct"] == sum(right)
        assert [int(p > one["boundary"]) for p in probabilities] == [int(r[name]) for r in rows]
    assert found["accuracy"] == found["without_calibration"]["accuracy"]
    assert found["with_calibration"]["boundary"] == pytest.approx(
        float(torch.tensor(probabilities, dtype=torch.float64).quantile(0.5))
    )


def test_the_table_is_plain_in_a_pipe_and_says_what_was_dropped(here: Path) -> None:
    lines = classify("--limit", "0").splitlines()
    found = facts()
    assert lines[0].startswith(f"60 reviews of reviews.csv (seed 42), {found['n_dropped']} dropped")
    rows = {line[:25].strip(): line for line in lines}
    without = found["without_calibration"]
    row = rows["without calibration"]
    assert f"{100 * without['accuracy']:.1f} %" in row
    counts = ("true_negative", "false_positive", "false_negative", "true_positive")
    assert [int(word) for word in row.split()[-4:]] == [without[name] for name in counts]
    assert {"random (expected)", "with calibration (median)"} < set(rows)
    assert not any("\x1b" in line for line in lines)


def test_the_same_command_gives_the_same_files(here: Path) -> None:
    folders = []
    for out in ("a", "b"):
        classify("--out", out)
        folders.append({path.name: path.read_bytes() for path in Path(out).iterdir()})
    assert folders[0] == folders[1]
    classify("--out", "a", "--seed", "1", "--limit", "20")
    assert (here / "a" / "predictions.csv").read_bytes() != folders[0]["predictions.csv"]
    assert sorted(path.name for path in Path("a").iterdir()) == FILES


def test_drawing_from_those_that_fit(here: Path) -> None:
    classify("--limit", "30", "--draw", "fitting")
    found = facts()
    assert found["n"] == 30
    assert found["n_drawn"] == 60
    assert 0 < found["n_dropped"] < 30


def test_calibrate_decides_which_accuracy_is_the_answer(here: Path) -> None:
    found = json.loads(classify("--calibrate", "--json"))  # nothing but JSON
    assert found == facts()
    assert found["accuracy"] == found["with_calibration"]["accuracy"]
    assert found["accuracy"] != found["without_calibration"]["accuracy"]
    assert "% with calibration" in classify("--calibrate").splitlines()[-2]


def test_the_figure_has_both_boundaries_and_can_be_opened(here: Path) -> None:
    classify()
    root = ET.parse("classification/histogram.svg").getroot()
    assert root.tag.endswith("svg")
    assert Path("classification/histogram.png").read_bytes().startswith(b"\x89PNG")


def test_options_defaults_are_those_of_the_functions() -> None:
    defaults = {option.name: option.default for option in classify_command.params}
    assert "{text}".join(parse_template(defaults["template"])) == TEMPLATE
    assert parse_words(defaults["words"], TEMPLATE) == WORDS
    assert (defaults["limit"], defaults["seed"]) == (1000, 42)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--template", "no place"), "{text} occurs 0 times; expected once"),
        (("--template", "{text}{text}"), "{text} occurs 2 times"),
        (("--words", "n"), "expected two different words"),
        (("--words", "bad,good"), "'bad' is 3 tokens ('b', 'a', 'd'), expected one"),
        (
            ("--template", "{text} is" + "!" * 30 + " "),
            "none of 60 reviews fits",
        ),
        (("--data", "none.csv"), "none.csv: no such file; expected yelp_polarity"),
        (("--data", "run"), "run: a folder"),
        (("--data", "empty.csv"), "empty.csv: empty"),
        (("--data", "cut.jsonl.xz"), "cut.jsonl.xz: ends in the middle (truncated)"),
        (("--data", "latin.csv"), "latin.csv:2: not UTF-8 (byte 2 of the line)"),
        (("--text-field", "review"), "expected a header with 'review' and 'label'"),
        (("--data", "one.csv"), "every label is 1"),
        (("--data", "seven.csv"), "seven.csv:2: label '7'"),
        (("--tokenizer", "gpt2"), "the model was trained with bytes"),
        (("--out", "reviews.csv"), "reviews.csv is a file; expected the name of a folder"),
        (("--out", "run/model.pt/x"), "model.pt is a file"),
        (("--device", "gpu"), "expected auto, cpu, mps, cuda or cuda:N"),
    ],
)
def test_mistakes_are_one_line(
    here: Path, refused: Callable[..., str], words: tuple[str, ...], message: str
) -> None:
    Path("empty.csv").touch()
    Path("cut.jsonl.xz").write_bytes(lzma.compress(b'{"text": "a", "label": 0}\n' * 99)[:-20])
    Path("latin.csv").write_bytes(b"text,label\nn\xe9,0\n")
    Path("one.csv").write_text("text,label\na,1\n")
    Path("seven.csv").write_text("text,label\na,7\n")
    before = sorted(here.rglob("*"))
    assert message in refused("classify", "run", "--data", "reviews.csv", *WORDS_OF_BYTES, *words)
    assert sorted(here.rglob("*")) == before


def test_old_files_stay_when_the_new_ones_cannot_be_written(
    here: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    classify()
    old = {path: path.read_bytes() for path in Path("classification").iterdir()}
    written = 0

    def full(descriptor: int) -> None:
        nonlocal written
        written += 1
        if written == 3:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("budgetsweep.files.os.fsync", full)
    error = refused(
        "classify", "run", "--data", "reviews.csv", *WORDS_OF_BYTES, "--seed", "5", "--limit", "9"
    )
    assert "--out classification: cannot be written (No space left on device)" in error
    assert {path: path.read_bytes() for path in Path("classification").iterdir()} == old
