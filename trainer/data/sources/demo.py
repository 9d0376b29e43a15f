"""Python's own standard library as text: no file and no network is needed. No torch."""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self, final

from budgetsweep.errors import DataError
from trainer.data.sources import Cursor, Record, Source

_LEFT_OUT = frozenset(
    {"__pycache__", "dist-packages", "ensurepip", "idlelib", "lib2to3", "site-packages"}
    | {"test", "tests", "turtledemo"}
)


@final
class DemoSource(Source):
    """Each module is a document."""

    default_tokenizer = "bytes"

    root = Path(sysconfig.get_path("stdlib"))

    @classmethod
    def claims(cls, name: str) -> bool:
        """The word itself."""
        return name == "demo"

    def open(self) -> Self:
        """Find the modules."""
        self.description = "Python's standard library"
        self.paths = sorted(self._modules(), key=self._name)
        self._sizes = [path.stat().st_size for path in self.paths]
        self.n_bytes = sum(self._sizes)
        if not self.paths:
            raise DataError(
                f"demo: no Python source files under {self.root} (a standard library in a zip "
                "archive or without sources); give a path of text files instead"
            )
        return self

    def _name(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()

    def _modules(self) -> Iterator[Path]:
        for folder, inner, names in os.walk(self.root):
            inner[:] = set(inner) - _LEFT_OUT
            for name in names:
                if name.endswith(".py") and not name.startswith("test_"):
                    yield Path(folder, name)

    def identity(self) -> dict[str, Any]:
        """Names and sizes: the same library in another place is the same text."""
        self.open()
        names = map(self._name, self.paths)
        return {"demo": [list(pair) for pair in zip(names, self._sizes, strict=True)]}

    def records(self, start: Cursor = (0, 0)) -> Iterator[Record]:
        """One document a module; line ends as in the file."""
        for index in range(start[0], len(self.paths)):
            text = problem = None
            try:
                text = self.paths[index].read_bytes().decode("utf-8")
            except (UnicodeDecodeError, OSError) as error:
                problem = f"cannot be read ({error})"
            yield Record(index, 0, text, problem, (index + 1, 0))

    def place(self, file: int, record: int) -> str:
        """Path of the module, which is one record."""
        return f"{self.paths[file]}:{record + 1}"
