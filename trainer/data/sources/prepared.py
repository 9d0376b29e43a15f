"""A folder of prepared tokens. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any, final

from trainer.data.shards.manifest import MANIFEST_NAME
from trainer.data.sources import Source


@final
class PreparedSource(Source):
    """Tokens that need no preparation."""

    claims_before = 1

    @classmethod
    def claims(cls, name: str) -> bool:
        """A folder with a manifest."""
        return (Path(name).expanduser() / MANIFEST_NAME).is_file()

    @property
    def prepared_folder(self) -> Path:
        """The folder itself."""
        return Path(self.name).expanduser()

    def identity(self) -> dict[str, Any]:
        """Where it is; what is in it says its manifest."""
        return {"prepared": str(self.prepared_folder.absolute())}
