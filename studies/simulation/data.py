"""What stands where a prepared text would in a simulated study. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from studies.simulation.worlds import world_named


class World(Protocol):
    """Where losses come from that no run of ours has: a simulated world, or a table of runs."""

    @property
    def checksum(self) -> str:
        """Names it and all that decides its losses; at most 64 characters."""

    @property
    def description(self) -> str:
        """One line for screens and reports."""


@dataclass(frozen=True)
class SimulatedData:
    """Stands where a prepared text would: there is no end of it, and its checksum is the world's.

    The names are those of `trainer.data.shards.tokens.TokenData`.
    """

    world: World

    @property
    def data_checksum(self) -> str:
        """Names the world and its constants."""
        return self.world.checksum

    @property
    def val_checksum(self) -> str:
        """Names the world and its constants."""
        return self.world.checksum

    @property
    def description(self) -> str:
        """One line for screens and reports."""
        return self.world.description


def simulated_data(world: str | None) -> SimulatedData:
    """The stand-in for a text of a simulated run.

    Raises:
        ConfigError: no such world.
    """
    return SimulatedData(world_named(world or ""))
