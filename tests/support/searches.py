"""A small real search for tests: byte-level models of a generated text, seconds in all."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from studies.database.store import Store
from studies.database.tables import Run, Study
from studies.search import Hooks, SearchOutcome, search
from studies.settings import SearchSettings
from studies.simulation.backend import Simulated
from studies.simulation.worlds import DEFAULT_WORLD
from studies.space.search_space import SearchSpace, space_from_dict
from studies.trackers.base import Observer, RunView
from trainer.data.config import DataConfig
from trainer.events import RunResult

BUDGET = 400_000_000

PARAMETERS: dict[str, Any] = {
    "n_embd": {"min": 8, "max": 24, "step": 8},
    "n_layer": {"values": [1, 2]},
    "head_dim": {"value": 8},
    "seq_len": {"values": [16, 32]},
    "batch_size": {"values": [2, 4]},
    "max_lr": {"min": 1e-3, "max": 3e-2, "distribution": "log_uniform_values"},
    "p_dropout": {"value": 0.0},
}


def tiny_space(**changes: Any) -> SearchSpace:
    """Shapes of a few thousand parameters."""
    return space_from_dict({"parameters": {**PARAMETERS, **changes}}, "tiny")


def write_text(folder: Path, n_documents: int = 300) -> Path:
    """A text file of paragraphs with some order in them, the same each time."""
    rng = random.Random(7)
    words = ["".join(rng.choices("abcdefgh", k=rng.randint(2, 6))) for _ in range(60)]
    paragraphs = [
        " ".join(rng.choices(words, weights=range(1, 61), k=rng.randint(20, 60))) + f" {index}."
        for index in range(n_documents)
    ]
    path = folder / "text.txt"
    path.write_text("\n\n".join(paragraphs), encoding="utf-8")
    return path


def settings_for(folder: Path, **changes: Any) -> SearchSettings:
    """Settings of a tiny search in `folder`; keywords replace the defaults."""
    text = folder / "text.txt"
    if not text.exists():
        write_text(folder)
    values: dict[str, Any] = {
        "storage": folder / "study.db",
        "study": "tiny",
        "budget_flops": BUDGET,
        "space": tiny_space(),
        "trials": 4,
        "device": "cpu",
        "threads": 1,
        "data": DataConfig(source=str(text)),
        "tokenizer": "bytes",
        "overrides": ("num_evals=2", "num_reports=4", "compile=off"),
        "cache_dir": folder / "cache",
    }
    return SearchSettings(**{**values, **changes})


class Recorder(Observer):
    """Remembers what it heard."""

    def __init__(self) -> None:
        self.started: list[RunView] = []
        self.ended: list[tuple[int, RunResult]] = []
        self.messages: list[str] = []
        self.n_rejected = 0

    def message(self, text: str) -> None:
        self.messages.append(text)

    def run_started(self, run: RunView) -> None:
        self.started.append(run)

    def run_ended(self, run: RunView, result: RunResult, best_val_loss_nats: float | None) -> None:
        self.ended.append((run.number, result))

    def rejected(self, number: int, rejection: object) -> None:
        self.n_rejected += 1


class Crash(Observer):
    """Ends the process, as far as a test can, when a trial has `started` or `ended`."""

    def __init__(self, number: int, when: str = "started") -> None:
        self.number, self.when = number, when

    def run_started(self, run: RunView) -> None:
        if (run.number, "started") == (self.number, self.when):
            raise KeyboardInterrupt

    def run_ended(self, run: RunView, result: RunResult, best_val_loss_nats: float | None) -> None:
        if (run.number, "ended") == (self.number, self.when):
            raise KeyboardInterrupt


def run_search(settings: SearchSettings, **hooks: Any) -> SearchOutcome:
    """A search with a recorder, unless hooks say otherwise."""
    return search(settings, Hooks(**{"observer": Recorder(), **hooks}))


def read(settings: SearchSettings) -> tuple[Study, list[Run]]:
    """The study and its trials."""
    with Store.open(settings.storage) as store:
        study = store.study(settings.study_name)
        return study, store.runs(study.id, kind="trial")


def trials(settings: SearchSettings) -> list[Run]:
    """The study's trials."""
    return read(settings)[1]


def simulated(folder: Path, **changes: Any) -> SearchSettings:
    """Settings of a simulated search at 1e15 in `folder`; keywords replace the defaults."""
    values: dict[str, Any] = {
        "storage": folder / "s.db", "backend": Simulated(DEFAULT_WORLD), "sampler": "qmc",
        "trials": 8,
    }  # fmt: skip
    return SearchSettings(**{**values, **changes})
