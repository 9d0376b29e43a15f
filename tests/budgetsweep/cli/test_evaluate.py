"""`evaluate` and `convert` as a user types them, checked against the course's decoder."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml

from budgetsweep.cli.evaluate import FORMAT_NAMES
from budgetsweep.errors import DataError
from tests.support.commands import run, run_json
from tests.support.reference_course import CourseLM
from tests.support.tiny_runs import tiny_config
from trainer.data.prepare import prepare
from trainer.export.formats import Format

D, H, P, L = 12, 3, 9, 2
TEXT = "Held-out text, naïve and 日本, " * 9 + "end.\n"


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working folder with a text, `held.txt`."""
    monkeypatch.chdir(tmp_path)
    Path("held.txt").write_text(TEXT)
    monkeypatch.setenv("BUDGETSWEEP_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def course(tmp_path: Path) -> CourseLM:
    """The course's decoder on bytes; its model.pt lies bare in `model/`."""
    model = CourseLM(257, D, H, P, L).eval()
    Path("model").mkdir()
    torch.save(model.state_dict(), "model/model.pt")
    return model


def evaluate(*words: str) -> dict:
    return run_json("evaluate", *words, "--device", "cpu")


@torch.no_grad()
def by_hand(model: CourseLM, ids: list[int], seq_len: int = P) -> list[list[float]]:
    """Loss of each predicted token, window by window, in float64."""
    model = model.double()
    windows = []
    for start in range(0, len(ids), seq_len):
        window = torch.tensor(ids[start : start + seq_len])
        if len(window) > 1:
            logits = model(window[None, :-1])[0]
            windows.append(F.cross_entropy(logits, window[1:], reduction="none").tolist())
    return windows


@pytest.mark.parametrize("seq_len", [None, 2, 5])
def test_a_text_file_on_a_bare_model_of_the_course(course: CourseLM, seq_len: int | None) -> None:
    more = () if seq_len is None else ("--seq-len", str(seq_len))
    measured = evaluate("model/model.pt", "--data", "held.txt", *more)
    windows = by_hand(course, list(TEXT.encode()), seq_len or P)
    losses = [loss for window in windows for loss in window]
    mean = math.fsum(losses) / len(losses)
    assert measured["n_tokens"] == len(losses)
    assert measured["data_tokens"] == len(TEXT.encode())
    assert measured["loss_nats"] == pytest.approx(mean, rel=1e-6)
    assert measured["ppl"] == pytest.approx(math.exp(mean), rel=1e-5)
    assert measured["bits_per_byte"] == pytest.approx(mean / math.log(2), rel=1e-6)
    sums = np.array([sum(window) for window in windows])
    counts = np.array([len(window) for window in windows])
    k = len(windows)
    variance = k / (k - 1) * ((sums - mean * counts) ** 2).sum() / counts.sum() ** 2
    assert measured["stderr_nats"] == pytest.approx(math.sqrt(variance), rel=1e-5)
    assert (measured["tokenizer"], measured["seq_len"]) == ("bytes", seq_len or P)


def test_every_kind_of_file_gives_the_same_loss(course: CourseLM) -> None:
    ids = np.array([*TEXT.encode(), 256], dtype=np.uint16)
    Path("held.jsonl").write_text(json.dumps({"body": TEXT}) + "\n")
    np.savez("tokens.npz", train=np.zeros(3, np.uint16), val=ids)
    np.save("ids.npy", ids.astype(np.int64))
    expected = math.fsum(sum(w) for w in by_hand(course, ids.tolist()))
    for name in ("held.jsonl", "tokens.npz", "ids.npy"):
        measured = evaluate("model", "--data", name, "--text-field", "body")
        assert measured["data_tokens"] == len(ids)
        total = measured["loss_nats"] * measured["n_tokens"]
        assert total == pytest.approx(expected, rel=1e-6), name
    part = evaluate("model", "--data", "ids.npy", "--val-tokens", "40")
    assert part["data_tokens"] == 40
    assert part["loss_nats"] == pytest.approx(
        np.mean(np.concatenate(by_hand(course, ids[:40].tolist()))), rel=1e-6
    )


def test_the_heads_come_from_the_flag_where_no_buffer_tells(
    course: CourseLM, refused: Callable[..., str]
) -> None:
    expected = evaluate("model", "--data", "held.txt")
    weights = {k: t for k, t in course.state_dict().items() if "scale_factor" not in k}
    torch.save(weights, "model/model.pt")
    error = refused("evaluate", "model", "--data", "held.txt", "--device", "cpu")
    assert "give --n-head, a divisor of n_embd = 12" in error
    assert evaluate("model", "--data", "held.txt", "--n-head", str(H)) == expected
    assert evaluate("model", "--data", "held.txt", "--n-head", "4") != expected


def test_one_window_has_no_standard_error(course: CourseLM) -> None:
    Path("held.txt").write_text("short")
    measured = evaluate("model", "--data", "held.txt")
    assert measured["n_tokens"] == 4
    assert measured["stderr_nats"] is None
    output = run("evaluate", "model", "--data", "held.txt", "--device", "cpu")
    assert output.startswith(f"val loss {measured['loss_nats']:.4f}  PPL {measured['ppl']:,.2f}  ")


def test_a_run_is_measured_on_its_own_text_and_on_a_file_whole(tmp_path: Path) -> None:
    text = "\n\n".join(f"Paragraph {i} of a text that is split by hash." for i in range(60))
    Path("text.txt").write_text(text)
    config = tiny_config(data={"source": str(tmp_path / "text.txt")})
    course = CourseLM(257, 16, 2, 16, 2)
    Path("run").mkdir()
    torch.save(course.state_dict(), "run/model.pt")
    Path("run/config.yaml").write_text(yaml.safe_dump(config.to_dict()))
    own = evaluate("run")
    val = prepare(config.data, "bytes", train_tokens=1, val_tokens=None).val
    assert own["data_tokens"] == len(val) < 500
    losses = np.concatenate(by_hand(course, val[:].tolist(), 16))
    assert own["loss_nats"] == pytest.approx(losses.mean(), rel=1e-6)
    whole = evaluate("run/model.pt", "--data", "text.txt")
    assert whole["data_tokens"] == len(text)
    assert whole["seq_len"] == config.seq_len
    folder = prepare(config.data, "bytes", train_tokens=1, val_tokens=None).folder
    assert evaluate("run", "--data", str(folder))["loss_nats"] == own["loss_nats"]


def test_the_courses_model_beside_the_courses_configuration(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """GPT-tiny as the course trains it, on its tokens.npz, without a network."""

    def no_network(name: str) -> None:
        raise DataError("no network")

    monkeypatch.setattr("trainer.data.held_out.load_tokenizer", no_network)
    Path("GPT-tiny").mkdir()
    example = Path(__file__).parents[3] / "examples/configs/GPT-tiny.yaml"
    Path("GPT-tiny/config.yaml").write_text(example.read_text() + "\nautocast: off\n")
    course = CourseLM(50257, 32, 2, 128, 2).eval()
    torch.save(course.state_dict(), "GPT-tiny/model.pt")
    val = np.random.default_rng(0).integers(0, 50257, 300)
    np.savez("tokens.npz", train=val[:9], val=val)
    measured = evaluate("GPT-tiny", "--data", "tokens.npz")
    losses = np.concatenate(by_hand(course, val.tolist(), 128))
    assert measured["n_tokens"] == len(losses)
    assert measured["loss_nats"] == pytest.approx(losses.mean(), rel=1e-6)
    assert measured["bits_per_byte"] is None
    assert measured["tokenizer"] == "gpt2"


@pytest.mark.parametrize("to", ["safetensors", "pt"])
def test_a_converted_model_gives_the_same_loss(course: CourseLM, to: str) -> None:
    expected = evaluate("model", "--data", "held.txt")
    output = run("convert", "model", "--to", to, "-o", f"out/{to}")
    assert output.startswith(f"out/{to}: config")
    assert evaluate(f"out/{to}", "--data", "held.txt") == expected


def test_the_formats_on_the_command_line_are_all() -> None:
    assert get_args(Format) == FORMAT_NAMES


MISTAKES = [
    ("evaluate nowhere --data held.txt", "nowhere: no such file or folder"),
    ("evaluate . --data held.txt", "no model.pt and no model.safetensors in this folder"),
    ("evaluate model", "no config.yaml beside it names validation data: give --data FILE"),
    ("evaluate model --data none.txt", "none.txt: no such file or folder"),
    ("evaluate model --data empty.txt", "empty.txt: 0 tokens; at least 2"),
    ("evaluate model --data ids.npy", "ids.npy: token id 999, but the vocabulary has ids 0 to 256"),
    ("evaluate model --data model", "model: no file in it that can be read"),
    ("evaluate model --data held.txt --tokenizer gpt2", "has 50257 ids, but the model only 257"),
    ("evaluate model --data held.txt --tokenizer x", "tokenizer 'x': expected one of gpt2"),
    ("evaluate model --data held.txt --n-head 5", "n_embd = 12 is not a multiple of n_head = 5"),
    # No tensor's shape shows the heads: without this check the loss would be silently wrong.
    ("evaluate model --data held.txt --n-head 4", "not trained with n_head = 4"),
    ("evaluate model --data held.txt --seq-len 10", "has positions for 9 tokens"),
    ("evaluate small --data held.txt", "held.txt: text needs the model's tokenizer"),
    ("evaluate small --data demo", "give --tokenizer"),
    ("evaluate model --data held.txt --device meta", "device = meta: expected auto, cpu, mps"),
    ("evaluate garbage.pt --data held.txt", "garbage.pt: damaged or no weights file"),
    ("evaluate nan --data held.txt", "its loss is nan: damaged weights?"),
    ("convert nowhere --to gpt2 -o out", "nowhere: no such file or folder"),
    ("convert model --to gpt2 -o model", "model: exists already; give a new or empty folder"),
    ("convert garbage.pt --to pt -o out", "garbage.pt: damaged or no weights file"),
]


@pytest.mark.parametrize(("words", "message"), MISTAKES)
def test_mistakes_are_one_line_and_exit_code_2(
    course: CourseLM, refused: Callable[..., str], words: str, message: str
) -> None:
    Path("empty.txt").touch()
    Path("garbage.pt").write_bytes(b"garbage")
    np.save("ids.npy", [1, 999])
    Path("small").mkdir()
    torch.save(CourseLM(31, D, H, P, L).state_dict(), "small/model.pt")
    Path("nan").mkdir()
    broken = {k: t * math.nan if k == "ln.bias" else t for k, t in course.state_dict().items()}
    torch.save(broken, "nan/model.pt")
    assert message in refused(*words.split())
    assert not Path("out").exists()


def test_a_broken_config_beside_the_weights_is_named(
    course: CourseLM, refused: Callable[..., str]
) -> None:
    shape = {"n_vocab": 257, "n_embd": D, "n_head": H, "n_positions": P, "n_layer": L}
    for config, message in (
        ("model_config: [1]", "config.yaml"),
        (yaml.safe_dump({"model_config": {**shape, "n_layer": 1}}), "(unknown blocks.1."),
        (yaml.safe_dump({"model_config": {**shape, "n_head": 2}}), "not trained with n_head = 2"),
    ):
        Path("model/config.yaml").write_text(config)
        assert message in refused("evaluate", "model", "--data", "held.txt", "--device", "cpu")
    Path("model/config.yaml").write_text(yaml.safe_dump({"model_config": shape}))
    assert evaluate("model", "--data", "held.txt")["tokenizer"] == "bytes"
