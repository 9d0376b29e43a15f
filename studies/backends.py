"""The backends that a study can have, by the beginning of their names."""

from __future__ import annotations

from pathlib import Path

from budgetsweep.errors import DataError
from studies.database.tables import Study
from studies.execution.base import Backend
from studies.execution.training import Training
from studies.simulation.backend import Simulated
from studies.simulation.replay import Replay


def backend_of(study: Study) -> Backend:
    """The backend that a study was made with.

    Raises:
        ConfigError: this version has none of its name.
        DataError: the file that it reads is gone, or what it knows has changed.
    """
    kind, _, rest = study.settings.backend.partition(":")
    location: str | None = study.settings.location
    if location is not None and not Path(location).exists():
        raise DataError(
            f"{location}: the table that study {study.name!r} replays is not there any more; "
            "restore it, or tell the search where it is now (search --replay FILE, all else as "
            "before)"
        )
    if kind == "simulated":
        return Simulated(rest)
    if location is not None:
        replay = Replay(Path(location))
        if replay.name != study.settings.backend:
            raise DataError(
                f"{location}: not the table that study {study.name!r} was made with (its checksum "
                "differs), so losses could not be compared; restore it or begin a new --study"
            )
        return replay
    return Training()
