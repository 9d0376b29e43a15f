"""Where documents come from, a module per kind of source: records with places to go on from.

Nothing here tokenises, and nothing but a source's own module knows its names. No torch.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from budgetsweep.errors import DataError
from budgetsweep.registry import import_modules_of
from trainer.data.config import DataConfig
from trainer.data.shards.manifest import Manifest
from trainer.data.shards.progress import PrepareProgress

Cursor = tuple[int, int]
"""(file, record): where reading goes on."""


@dataclass(frozen=True, slots=True)
class Record:
    """One record of a source."""

    file: int
    record: int
    """Line, row or document within the file, from 0."""
    text: str | None
    """None: a bad record."""
    problem: str | None
    """Why it is bad."""
    next: Cursor | None
    """Where to read on after this record; None: in the middle of something."""
    source: str | None = None
    """Source text of a pair, whose target is `text`; None: no pair."""
    label: Any = None
    """What stands in the field of the label, where one was asked for."""

    @property
    def documents(self) -> list[str]:
        """Its texts in the order of the tokens: of a pair both; none where it is bad or empty."""
        if not self.text:
            return []
        return [self.text] if self.source is None else [self.source, self.text]


@dataclass(frozen=True)
class PrepareJob:
    """What has to be prepared, and where; the caller holds the folder's lock."""

    data: DataConfig
    tokenizer: str
    """A key of `TOKENIZER_VOCABULARIES`."""
    identity: str
    """Hash of what decides the tokens (`trainer.data.cache.data_identity`)."""
    folder: Path
    manifest: Manifest | None
    """What is in the folder already."""
    train_tokens: int | None
    """Training tokens wanted; None: all."""
    val_tokens: int | None
    """Validation tokens wanted by the first preparation; None: the default."""
    workers: int
    on_progress: Callable[[PrepareProgress], None] | None
    """Called several times a second from the calling thread."""


class Source(ABC):
    """A text that a name such as `demo` or a path stands for; the same documents at each reading.

    A subclass in a module of this package is known everywhere.
    """

    claims_before: ClassVar[int] = 0
    """Of several sources that claim a name the one with the least: 0 keywords, 1 a kind of path,
    2 any path."""
    default_tokenizer: ClassVar[str] = "gpt2"
    has_end: ClassVar[bool] = True
    """Else it is read only as far as wanted, and never whole."""

    description: str
    """A few words for people."""
    n_bytes: int | None = None
    """About how many bytes of text there are, once it is open; None: not known."""
    pairs: bool = False
    """Each document is the target of a pair, with its source beside it; known once it is open."""

    _known: ClassVar[list[type[Source]]] = []

    def __init__(self, name: str, text_field: str = "text", revision: str | None = None) -> None:
        """Take a name that the class claims, and a version where it can change; opens nothing."""
        self.name, self.text_field, self.revision = name, text_field, revision
        self.description = name

    def __init_subclass__(cls) -> None:
        Source._known.append(cls)

    @classmethod
    @abstractmethod
    def claims(cls, name: str) -> bool:
        """Whether a name is one of this source's."""

    @classmethod
    def is_file(cls, name: str) -> bool:
        """Whether a name that it claims is one of a local file."""
        return cls.claims_before > 0 and Path(name).expanduser().is_file()

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """Plain data that changes whenever the documents may have changed; needs no network.

        Raises:
            DataError: a file is not there.
        """

    def short_name(self) -> str:
        """For the name of the folder of its tokens."""
        return Path(self.name).name

    @property
    def prepared_folder(self) -> Path | None:
        """The folder of prepared tokens that it is; None: it has to be prepared."""
        return None

    def copy_tokens(self, job: PrepareJob) -> Manifest | None:
        """Copy what holds tokens into shards; None: it holds documents."""
        del job
        return None

    def open(self) -> Self:
        """Find its files.

        Raises:
            DataError: no such file, nothing in it, no network, or no such field.
        """
        return self

    def records(self, start: Cursor = (0, 0)) -> Iterator[Record]:
        """Documents and bad records from a place that an earlier record gave as `next`.

        Raises:
            DataError: a file is damaged, the network is gone, or it holds tokens.
        """
        del start
        raise DataError(f"{self.name}: holds token ids, where documents are needed; give a text")

    def place(self, file: int, record: int) -> str:
        """Name of a record for people, such as `notes.jsonl:17`."""
        return f"{self.name}: {file}:{record + 1}"


@functools.cache
def _sources() -> list[type[Source]]:
    import_modules_of(__name__)
    return sorted(Source._known, key=lambda source: source.claims_before)


def source_class(name: str) -> type[Source]:
    """The kind of source that claims a name; a path where no other does."""
    return next(source for source in _sources() if source.claims(name))


def open_source(name: str, text_field: str = "text") -> Source:
    """The open source of a name.

    Raises:
        DataError: as `Source.open`.
    """
    return source_class(name)(name, text_field).open()
