"""Draft the next version from the difference between `studies.database.tables` and `HEAD`."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from studies.database.connection import open_engine, storage_url
from studies.database.migrations import HEAD, alembic_config, migrate


def draft(message: str, scripts: str | None = None) -> Path:
    """Write the next file of `versions/`; `scripts` is another folder of scripts than ours."""
    from alembic import command

    with tempfile.TemporaryDirectory() as folder:
        engine = open_engine(storage_url(Path(folder) / "head.db"), create=True)
        try:
            migrate(engine)
            with engine.connect() as connection:
                config = alembic_config(connection)
                if scripts is not None:
                    config.set_main_option("script_location", scripts)
                config.set_main_option("file_template", "v%%(rev)s_%%(slug)s")
                made = command.revision(
                    config, message, autogenerate=True, rev_id=f"{int(HEAD) + 1:04d}"
                )
        finally:
            engine.dispose()
    script = made[0] if isinstance(made, list) else made
    if script is None:
        raise RuntimeError("alembic wrote no file")
    return Path(script.path)


if __name__ == "__main__":
    draft(" ".join(sys.argv[1:]) or "change")
