"""The commands as a user types them: help, one clear line for mistakes, and the whole way once."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from budgetsweep.cli.main import COMMANDS, cli
from budgetsweep.cli.options import Flops
from budgetsweep.cli.search import search_command
from studies.settings import SearchSettings
from tests.support.commands import run, run_json, usage_error
from tests.support.processes import ROOT
from tests.support.searches import PARAMETERS, write_text


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str) -> None:
    assert run(command, "--help").startswith("Usage: ")
    assert f"\n  {command} " in run("--help")


def test_options_of_search_stand_under_headings() -> None:
    lines = run("search", "--help").splitlines()
    headings = ["Budget:", "Search:", "Data:", "Hardware:", "Output:", "Other:"]
    assert [line for line in lines if line in headings] == headings
    flags = {line.split()[0]: i for i, line in enumerate(lines) if line.startswith("  --")}
    order = ["--budget", "--sampler", "--data", "--workers", "--study"]
    starts = [lines.index(heading) for heading in headings]
    for flag, start, end in zip(order, starts, starts[1:], strict=False):
        assert start < flags[flag] < end


def test_an_option_of_search_has_the_name_of_its_setting() -> None:
    """A flag is its option and its field: nothing is copied by hand between the two."""
    fields = {field.name for field in dataclasses.fields(SearchSettings)}
    names = {param.name for param in search_command.params}
    data = {"source", "validation", "text_field"}
    assert names - fields == {*data, "simulate", "replay", "dry_run", "yes"}
    assert fields - names == {"data", "backend", "is_default_plan"}


def test_help_is_quick_and_loads_nothing_heavy() -> None:
    code = (
        "import sys, time; t = time.perf_counter(); import budgetsweep.cli.main as c; "
        "[c.cli.get_command(None, name) for name in c.COMMANDS]; t = time.perf_counter() - t; "
        "heavy = {'torch', 'optuna', 'sqlalchemy', 'pandas', 'matplotlib', 'datasets', 'rich'}; "
        "print(t, sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        cwd=ROOT,
    )  # fmt: skip
    seconds, _, loaded = done.stdout.strip().partition(" ")
    assert loaded == "[]"
    assert float(seconds) < 3.0  # 0.1 s on a quiet machine; the bar of 0.3 s is benchmarked


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("train none.yaml", "none.yaml: no such file"),
        ("flops none.yaml", "none.yaml: no such file"),
        ("fit none.csv", "none.csv: no such file"),
        ("status --storage none.db", "no such study database"),
        ("report --storage none.db", "no such study database"),
        ("promote --storage none.db", "no such study database"),
        ("export --storage none.db", "no such study database"),
        ("evaluate nowhere", "nowhere: no such file or folder"),
        ("search --space none.yaml", "none.yaml: no such file"),
        ("search --simulate --points-from x --storage none.db", "no such study database"),
        ("search --budget 10 --data demo", "set a larger --budget"),
        ("search --tokenizer gpt9", "expected one of gpt2"),
        ("search --set batch_sz=3 --data demo --budget 1e11", "batch_size"),
        ("search --storage oracle9://x", "unknown kind of database"),
        ("search --trials-per-gpu 4 --workers 1", "--trials-per-gpu and --workers both say"),
        ("search --trials-per-gpu 4 --device cpu", "no GPU with device cpu: use --workers 4"),
        ("search --trials-per-gpu 4 --device mps", "no GPU with device mps: use --workers 4"),
        ("search --trials-per-gpu 4 --simulate", "--simulate: leave out --trials-per-gpu"),
        ("promote --scale -1", "--scale"),
        ("diagnose", "give one of RUN"),
        ("diagnose x.csv --trial 1", "give one of RUN"),
        ("diagnose --trial 1 --promotion 0", "give one of RUN"),
        ("diagnose x.csv", "x.csv: no such file"),
        ("diagnose --trial 1 --storage none.db", "no such study database"),
    ],
)
def test_mistakes_are_one_line_with_exit_code_2_and_leave_nothing(
    line: str, message: str, refused: Callable[..., str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BUDGETSWEEP_CACHE", str(tmp_path.with_name("cache")))
    assert message in refused(*line.split())
    assert not list(tmp_path.iterdir())


def test_data_that_are_not_there_are_one_line(
    refused: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "nothing.txt" in refused("search", "--data", "nothing.txt", "--budget", "1e12")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--device cuda:99", "device = cuda:99: PyTorch"),
        ("--trials-per-gpu 4", "--trials-per-gpu 4: no GPU with device auto"),
    ],
)
def test_a_device_that_is_not_there_is_one_line_and_leaves_no_database(
    line: str, message: str, tmp_path: Path
) -> None:
    """All of what a user sees: the worker that looks for the device is a process of its own."""
    command = f"search --budget 1e10 --data demo --trials 1 {line}".split()
    done = subprocess.run(
        [sys.executable, "-m", "budgetsweep", *command], cwd=tmp_path, capture_output=True,
        text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith(f"Error: {message}")
    assert len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "line",
    [
        "fit examples/isoflop.csv",
        "flops examples/configs/GPT-tiny.yaml --no-measure",
        "generate run --prefixes none.jsonl",
    ],
)
def test_torch_is_loaded_only_for_work(line: str) -> None:
    code = (
        "import sys, budgetsweep.cli.main as m\n"
        "try: m.main(sys.argv[1:])\n"
        "except SystemExit as done: print(done.code, 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *line.split()], cwd=ROOT, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    assert done.stdout.splitlines()[-1] in ("0 False", "2 False")


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("search --budget abc", "--budget"), ("search --budget -5", "--budget"),
        ("search --budget nan", "--budget"), ("search --trials 0", "--trials"),
        ("search --sampler magic", "--sampler"), ("search --seed -1", "--seed"),
        ("search --bugdet 1", "--bugdet"), ("nonsense", "nonsense"), ("data info x", "x"),
        ("classify m --data x --limit -1", "--limit"), ("classify m --data x --seed -1", "--seed"),
        ("classify m --data x --batch-size -1", "--batch-size"),
        ("generate m --prefixes x --max-new-tokens 0", "--max-new-tokens"),
        ("generate m --prefixes x --batch-size 0", "--batch-size"),
        *((f"search --trials-per-gpu {n}", "--trials-per-gpu") for n in ("0", "65", "1.5", "auto")),
        ("fit x --predict 1e7", "requires 2 arguments"),
        ("fit x --predict 0 1e8", "0.0 is not in the range"),
        ("fit x --predict-flops 1e17,x", "'1e17,x' is not a number"),
    ],
)  # fmt: skip
def test_wrong_flags_are_usage_errors(line: str, named: str) -> None:
    assert named in usage_error(*line.split())


def test_budgets_are_exact_whole_numbers() -> None:
    assert Flops().convert("1e15", None, None) == 10**15
    assert Flops().convert("123456789012345678901", None, None) == 123456789012345678901
    assert Flops().convert("2.5e3", None, None) == 2500


def test_flops_explains_the_courses_configuration(tmp_path: Path) -> None:
    path = ROOT / "examples/configs/GPT-tiny.yaml"
    facts = run_json("flops", str(path), "--budget", "1e15", "--no-measure")
    assert facts["n_params"] == 1_637_792
    assert sum(facts["flops_per_token"]["nanogpt"].values()) == 9_925_056
    assert facts["train_flops"]["nanogpt"] == 81_306_058_752_000
    assert facts["affordable_steps"] == 24598
    text = run("flops", str(path), "--budget", "1e15", "--no-measure")
    assert "1,637,792" in text
    assert "8.13 % used" in text


def test_the_shell_can_complete_commands() -> None:
    env = {
        "_BUDGETSWEEP_COMPLETE": "bash_complete",
        "COMP_WORDS": "budgetsweep se",
        "COMP_CWORD": "1",
    }
    assert "plain,search" in CliRunner().invoke(cli, env=env, prog_name="budgetsweep").output


@pytest.mark.slow
def test_the_whole_way_as_a_user_goes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Callable[..., str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BUDGETSWEEP_CACHE", str(tmp_path / "cache"))
    text = write_text(tmp_path)
    Path("space.yaml").write_text(yaml.safe_dump({"budget": 4e8, "parameters": PARAMETERS}))
    common = ["--data", str(text), "--tokenizer", "bytes", "--device", "cpu"]

    output = run(
        "search", "--space", "space.yaml", "--trials", "2", "--threads", "1", *common,
        "--set", "num_evals=2", "--study", "cli", "--yes",
    )  # fmt: skip
    assert "measured here: a trial of 4e8 FLOPs" in output
    assert "best: trial" in output

    status = run_json("status")
    assert status["trials"] == {"complete": 2}
    assert status["flops_spent"] == status["flops_planned"] <= 2 * 4 * 10**8
    assert "best: trial" in run("status")

    output = run("promote", "--scale", "4", "--device", "cpu", "--yes")
    assert "promoted trial" in output
    promoted = run_json("status")["promotions"][0]
    assert promoted["val_loss_nats"] < status["best"]["val_loss_nats"]
    run("promote", "--scale", "4", "--device", "cpu", "--yes")
    assert len(run_json("status")["promotions"]) == 1  # not run twice

    folder = promoted["output_dir"]
    measured = run_json("evaluate", folder, "--device", "cpu")
    assert measured["loss_nats"] == pytest.approx(promoted["val_loss_nats"], rel=1e-4)

    run("report", "-o", "rep")
    assert "promot" in Path("rep/report.md").read_text().lower()
    run("export", "-o", "exp")
    best = yaml.safe_load(Path("exp/best.yaml").read_text())
    assert best["model_config"]["n_embd"] == status["best"]["params"]["n_embd"]
    run("train", "exp/best.yaml", "--threads", "1")
    evaluation = json.loads(Path("outputs/best/eval.json").read_text())
    assert evaluation["val_loss_nats"] == status["best"]["val_loss_nats"]
    third = run(
        "search", "--space", "exp/space.yaml", "--trials", "2", "--threads", "1", *common,
        "--set", "num_evals=2", "--study", "cli", "--yes",
    )  # fmt: skip
    assert "all 2 trials are done" in third

    Path(folder, "model.pt").write_bytes(b"garbage")
    assert "model.pt" in refused("evaluate", folder, "--device", "cpu")
    assert "ready" in run("data", "info")


def test_a_dry_run_trains_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("budgetsweep.cli.search.DRY_RUN_PROPOSALS", 200)
    Path("space.yaml").write_text(
        yaml.safe_dump(
            {"parameters": {**PARAMETERS, "num_training_steps": {"values": [20, 10**6]}}}
        )
    )
    output = run(
        "search", "--dry-run", "--space", "space.yaml", "--budget", "4e8", "--data", "demo",
        "--threads", "1",
    )  # fmt: skip
    assert "200 random proposals" in output
    assert "over_budget" in output
    assert "training tokens" in output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["space.yaml"]
