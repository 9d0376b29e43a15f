"""`budgetsweep generate` as a user types it: file in, file and table out, one line for mistakes."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from budgetsweep.cli.display import new_console, work_display
from budgetsweep.cli.generate import Sample, print_side_by_side, read_prefixes
from budgetsweep.errors import DataError
from model.generation.decoding import generate
from tests.support.commands import run
from tests.support.tiny_runs import write_run
from trainer.data.tokenizers import ByteTokenizer

PREFIXES = ["Once upon a time", "", "né [bold]x[/bold]", "a prefix that is longer than the model"]
KEYS = [
    "prefix", "temperature", "generation", "n_tokens", "finish_reason", "top_k", "top_p", "seed",
]  # fmt: skip


def write_prefixes(path: Path, prefixes: list[str]) -> None:
    lines = [json.dumps({"prefix": prefix, "id": i}) for i, prefix in enumerate(prefixes)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with `run` (a model) and `prefixes.jsonl`."""
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "run", 0.5)
    write_prefixes(tmp_path / "prefixes.jsonl", PREFIXES)
    return tmp_path


def invoke(*words: str) -> str:
    return run("generate", "run", "--prefixes", "prefixes.jsonl", "--device", "cpu", *words)


def samples(path: str = "generation.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def test_a_line_for_each_prefix_and_temperature(here: Path) -> None:
    invoke(
        "--temperature", "0", "--temperature", "0.7", "--temperature", "1", "--seed", "3",
        "--max-new-tokens", "24", "--ignore-eot",
    )  # fmt: skip
    written = samples()
    assert [(s["prefix"], s["temperature"]) for s in written] == [
        (prefix, t) for prefix in PREFIXES for t in (0.0, 0.7, 1.0)
    ]
    assert all(list(s) == KEYS for s in written)
    model = write_run(here / "again", 0.5)
    for t in (0.0, 0.7, 1.0):
        expected = generate(model, "cpu", ByteTokenizer(), PREFIXES, 16, 24, t, seed=3)
        assert [s["generation"] for s in written if s["temperature"] == t] == expected
    assert {s["n_tokens"] for s in written} == {24}
    assert {s["finish_reason"] for s in written} == {"length"}
    assert {s["seed"] for s in written} == {3}
    assert len({s["generation"] for s in written}) > 8


def test_the_table_stands_side_by_side_and_is_plain_in_a_pipe(here: Path) -> None:
    output = invoke("--temperature", "0", "--temperature", "0.5", "--max-new-tokens", "4")
    head, *rows = output.splitlines()
    assert head.split() == ["prefix", "temperature", "0", "temperature", "0.5"]
    assert rows[0].startswith("Once upon a time ")
    assert [row.split()[0] for row in rows if row.strip()] == ["Once", "(empty)", "né", "a", "8"]
    assert "[bold]x[/bold]" in output
    assert rows[-1] == "8 continuations in generation.jsonl"
    assert "\x1b" not in output


def test_the_same_command_writes_the_same_file_in_any_batch(here: Path) -> None:
    words = ("--temperature", "1", "--top-k", "40", "--top-p", "0.9")
    texts = []
    for batch_size in ("1", "3", "16"):
        invoke(*words, "--batch-size", batch_size)
        texts.append(Path("generation.jsonl").read_bytes())
    assert texts[0] == texts[1] == texts[2]
    assert (samples()[0]["top_k"], samples()[0]["top_p"]) == (40, 0.9)
    invoke(*words, "--seed", "1")
    assert Path("generation.jsonl").read_bytes() != texts[0]


def test_continuations_end_at_an_end_of_text_token_unless_told_otherwise(here: Path) -> None:
    words = ("--temperature", "8", "--max-new-tokens", "200", "--out")
    invoke(*words, "short.jsonl")
    invoke(*words, "long.jsonl", "--ignore-eot")
    ended = 0
    for short, long in zip(samples("short.jsonl"), samples("long.jsonl"), strict=True):
        assert long["n_tokens"] == 200
        if "<|endoftext|>" in long["generation"]:
            ended += 1
            assert short["finish_reason"] == "eot"
            assert short["n_tokens"] < 200
            assert short["generation"] == long["generation"].split("<|endoftext|>")[0]
        else:
            assert short["generation"] == long["generation"]
    assert ended


def test_a_temperature_given_twice_counts_once_and_folders_are_made(here: Path) -> None:
    words = ("--temperature", "0", "--temperature", "0.0", "--max-new-tokens", "2")
    invoke(*words, "--out", "new/folder/out.jsonl")
    assert len(samples("new/folder/out.jsonl")) == len(PREFIXES)
    assert [path.name for path in Path("new/folder").iterdir()] == ["out.jsonl"]


def test_an_instruction_that_changes_nothing_is_said(here: Path) -> None:
    assert "change nothing at temperature 0" in invoke("--top-k", "3")
    assert "change nothing" not in invoke("--top-k", "3", "--temperature", "1")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--temperature", "-1"), "temperature = -1.0"),
        (("--temperature", "0.5", "--temperature", "nan"), "temperature = nan"),
        (("--temperature", "inf"), "temperature = inf"),
        (("--top-p", "0"), "top_p = 0.0"),
        (("--top-p", "1.01"), "top_p = 1.01"),
        (("--top-k", "0"), "top_k = 0"),
        (("--out", "."), "is a folder"),
        (("--out", "prefixes.jsonl"), "is the file of the prefixes"),
        (("--out", "run/model.pt/x"), "model.pt is a file"),
        (("--prefixes", "none.jsonl"), "none.jsonl: no such file"),
        (("--prefixes", "run"), "run: cannot be read"),
        (("--prefixes", "blank.jsonl"), "the file is empty"),
        (("--prefixes", "latin.jsonl"), "not UTF-8 text (byte 1)"),
        (("--device", "gpu"), "expected auto, cpu, mps, cuda or cuda:N"),
    ],
)
def test_mistakes_are_one_line(
    here: Path, refused: Callable[..., str], words: tuple[str, ...], message: str
) -> None:
    before = Path("prefixes.jsonl").read_bytes()
    Path("blank.jsonl").write_bytes(b"\n \n\r\n")
    Path("latin.jsonl").write_bytes(b"\n\xff")
    assert message in refused("generate", "run", "--prefixes", "prefixes.jsonl", *words)
    assert not Path("generation.jsonl").exists()
    assert Path("prefixes.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"prefix": "a"', "Invalid JSON: EOF while parsing an object, column 14"),
        (b"Once upon", "Invalid JSON"),
        (b'["a"]', "Input should be an object"),
        (b'{"text": "a", "id": 1}', "prefix: Field required"),
        (b'{"prefix": 5}', "prefix: Input should be a valid string"),
        (b'{"prefix": null}', "prefix: Input should be a valid string"),
        (b'{"prefix": "a\\ud800"}', "unexpected end of hex escape, column 20"),
        (b"[" * 100_000, "recursion limit exceeded"),
        (b"9" * 10_000, "line 3: "),
    ],
)  # fmt: skip
def test_a_bad_line_is_named_by_its_number(
    here: Path, refused: Callable[..., str], line: bytes, message: str
) -> None:
    Path("prefixes.jsonl").write_bytes(b'{"prefix": "fine"}\n\n' + line + b'\n{"prefix": "b"}\n')
    error = refused("generate", "run", "--prefixes", "prefixes.jsonl")
    assert "prefixes.jsonl, line 3: " in error
    assert message in error


def test_lines_end_at_line_feeds_only(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(
        b'\xef\xbb\xbf{"prefix": "a\\nb"}\r\n\r\n'
        + '{"prefix": "c\u2028d\u0085e"}\n{"id": 1, "prefix": ""}'.encode()
    )
    assert read_prefixes(path) == ["a\nb", "c\u2028d\u0085e", ""]
    path.write_bytes(b'{"prefix": "a"}\r{"prefix": "b"}')
    with pytest.raises(DataError, match="line 1: Invalid JSON"):
        read_prefixes(path)


def test_the_example_can_be_read() -> None:
    prefixes = read_prefixes(Path(__file__).parents[3] / "examples" / "prefixes.jsonl")
    assert prefixes[0] == "Once upon a time"
    assert prefixes[-1] == ""


def sample(prefix: str, text: str, temperature: float = 0.0) -> Sample:
    return Sample(prefix, temperature, text, 1, "length", None, None, 0)


def test_generated_text_cannot_steer_the_terminal() -> None:
    stream = io.StringIO()
    console = new_console(file=stream, force_terminal=True, width=80, color_system=None)
    print_side_by_side([[sample("a\nb", "\x1b[2J\x07\u202e[red]é")]], console)
    out = stream.getvalue()
    assert "\x1b" not in out
    assert "\x07" not in out
    assert "\u202e" not in out
    assert r"a\nb" in out
    assert r"\x1b[2J\x07\u202e[red]é" in out


def test_a_terminal_that_lacks_a_character_shows_a_question_mark() -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    print_side_by_side([[sample("a", "é日x")]], new_console(file=stream, width=80))
    stream.seek(0)
    assert "??x" in stream.read()


def test_a_long_table_ends_early_and_says_so() -> None:
    stream = io.StringIO()
    rows = [[sample(f"p{i}", "x"), sample(f"p{i}", "y", 1.0)] for i in range(1025)]
    print_side_by_side(rows, new_console(file=stream, width=80))
    lines = [line for line in stream.getvalue().splitlines() if line.strip()]
    assert len(lines) == 1 + 20 + 1
    assert lines[-1] == "... and 1,005 more prefixes"


def test_long_work_says_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("budgetsweep.cli.display.time.monotonic", lambda: now)
    stream = io.StringIO()
    console = new_console(file=stream, width=80)
    with work_display(console, total=4000, verb="generating", unit="tokens") as show:
        show(10)
        assert stream.getvalue() == ""
        now = 120.0
        show(1000)
        show(1100)
        assert stream.getvalue() == "generating: 1,000 of 4,000 tokens, about 1 min left\n"
