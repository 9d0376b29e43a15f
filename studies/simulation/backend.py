"""Backends whose runs nobody trains: what a simulated world and a table of runs share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from budgetsweep.errors import ConfigError
from studies.database.tables import Study
from studies.execution.base import Backend, OnPrepare, SearchRequest
from studies.execution.inline_pool import InlinePool
from studies.execution.messages import Workers
from studies.simulation.simulated_run import simulate_run
from studies.simulation.worlds import world_named
from studies.space.search_space import SearchSpace
from trainer.checkpoints.artefacts import read_finished, write_untrained
from trainer.config import RunConfig
from trainer.data.facts import DataFacts
from trainer.driver import RunDriver, RunEvents
from trainer.events import Point, RunResult, RunStatus

REPORTS = 20
"""Points of a simulated trial's curve unless the user says otherwise: they fill a database."""


class Untrained(Backend):
    """Losses that are looked up or computed: no data, no device, no time."""

    keeps_sampler_state = False
    checksum: str
    """Stands where checksums of data do; at most 64 characters."""
    description: str

    @abstractmethod
    def open_run(self, config: RunConfig) -> RunEvents:
        """The events of a run."""

    def executor(self, workers: Workers, *, for_promotion: bool = False) -> InlinePool:
        """Runs in this process; those of a promotion leave files."""

        def open_run(config: RunConfig, run_dir: Path) -> RunEvents:
            run = self.open_run(config)
            return recorded(run, config, run_dir, self.checksum) if for_promotion else run

        return InlinePool(workers.count, open_run)

    def facts(self) -> DataFacts:
        """There is no end of data, and their checksum is that of what stands for them."""
        return DataFacts(self.description, self.checksum, self.checksum)

    def fix_data(
        self, study: Study, space: SearchSpace, workers: Workers, on_prepare: OnPrepare
    ) -> tuple[Mapping[str, Any], DataFacts]:
        """Nothing is prepared."""
        del space, workers, on_prepare
        data: Mapping[str, Any] = study.settings.base["data"]
        return data, self.facts()

    def promotion_data(
        self,
        study: Study,
        config: RunConfig,
        train_tokens: int | None,
        workers: Workers,
        on_prepare: OnPrepare,
    ) -> tuple[RunConfig, DataFacts]:
        """Nothing is prepared."""
        del study, train_tokens, workers, on_prepare
        return config, self.facts()


class Simulated(Untrained):
    """Losses of a simulated world."""

    def __init__(self, world: str) -> None:
        """Find a world by its name.

        Raises:
            ConfigError: there is none.
        """
        self.world = world_named(world)
        self.name = f"simulated:{world}"
        self.source_name = f"simulated-{world}"
        self.checksum, self.description = self.world.checksum, self.world.description

    def check(self, asked: SearchRequest) -> None:
        """Refuse what has no meaning without training."""
        if asked.trials_per_gpu is not None:
            raise ConfigError("--simulate: leave out --trials-per-gpu: nothing is trained on a GPU")
        for override in asked.overrides:
            name, _, value = override.partition("=")
            if name.strip() == "architecture" and value.strip() != "decoder":
                raise ConfigError("--simulate: the laws are of decoders; leave architecture out")

    def run_settings(self) -> dict[str, Any]:
        """Few points per run."""
        return {"num_reports": REPORTS}

    def open_run(self, config: RunConfig) -> RunEvents:
        """A run of the world."""
        return simulate_run(config, self.world)


def recorded(run: RunEvents, config: RunConfig, run_dir: Path, checksum: str) -> RunEvents:
    """A run that leaves config.yaml, curve.csv and eval.json; a finished one is read from there.

    `checksum` is that of what stands for the data.

    Raises:
        CheckpointError: the folder cannot be written or holds another run's result.
    """
    finished = read_finished(run_dir, config)
    if finished is not None:
        for point in finished.points:  # its caller may have been killed before it saw them
            _ = yield point  # a verdict comes too late
        return finished.result
    driver, points = RunDriver(run), list[Point]()
    while not isinstance(event := driver.advance(), RunResult):
        if isinstance(event, Point):
            points.append(event)
        driver.answer((yield event) or "continue")
    if event.status != RunStatus.COMPLETE:
        return event
    return write_untrained(run_dir, config, points, event, checksum)
