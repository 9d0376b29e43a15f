"""Text to token ids and back: tiktoken's encodings, and plain UTF-8 bytes. No torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, final

import numpy as np
from numpy.typing import NDArray

from budgetsweep.config import did_you_mean
from budgetsweep.errors import DataError
from trainer.config import TOKENIZER_VOCABULARIES
from trainer.data.shards.tokens import Ids
from trainer.data.time_limit import answer_within

if TYPE_CHECKING:
    import tiktoken

FETCH_SECONDS = 20.0
"""Longest wait for the files of a tokenizer (1.5 MB for gpt2)."""


END_OF_TEXT = {"gpt2": 50256, "r50k_base": 50256, "p50k_base": 50256, "bytes": 256}
"""End-of-text id of each tokenizer, known without its files."""


class Tokenizer(ABC):
    """A tokenizer whose ids fit in uint16. Text that spells a special token stays plain text."""

    name: str
    n_vocab: int
    eot: int
    """Id that ends each document."""

    @property
    def eot_token(self) -> int:
        """The end-of-text id under tiktoken's name."""
        return self.eot

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Ids of a text, without an end-of-text id."""

    @abstractmethod
    def _encode(self, text: str, raw: bytes) -> NDArray[np.integer[Any]]:
        """Ids of a text, which is given in UTF-8 too."""

    def encode_documents(self, texts: Sequence[str]) -> list[Ids]:
        """Ids of each text followed by one end-of-text id, as uint16; threads may run this at once.

        Raises:
            UnicodeEncodeError: a text has lone surrogates and so is not Unicode text.
        """
        documents = []
        for text in texts:
            found = self._encode(text, text.encode())  # tiktoken would replace lone surrogates
            ids = np.empty(len(found) + 1, dtype=np.uint16)
            ids[:-1] = found
            ids[-1] = self.eot
            documents.append(ids)
        return documents

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids; bytes that are not UTF-8 become U+FFFD, end-of-text `<|endoftext|>`."""

    @abstractmethod
    def token_bytes(self) -> Ids:
        """(n_vocab,) UTF-8 bytes of text that each id stands for; 0 for end-of-text."""


@final
class ByteTokenizer(Tokenizer):
    """The identity on UTF-8 bytes, and 256 as end-of-text. Needs no files."""

    def __init__(self) -> None:
        self.name = "bytes"
        self.n_vocab = TOKENIZER_VOCABULARIES["bytes"]
        self.eot = 256

    def encode(self, text: str) -> list[int]:
        """UTF-8 bytes of a text."""
        return list(text.encode())

    def _encode(self, text: str, raw: bytes) -> NDArray[np.integer[Any]]:
        del text
        return np.frombuffer(raw, dtype=np.uint8)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of bytes."""
        end = b"<|endoftext|>"
        return b"".join(end if i == self.eot else bytes([i]) for i in ids).decode(errors="replace")

    def token_bytes(self) -> Ids:
        """One byte an id."""
        table = np.ones(self.n_vocab, dtype=np.uint16)
        table[self.eot] = 0
        return table


@final
class TiktokenTokenizer(Tokenizer):
    """One of tiktoken's encodings."""

    def __init__(self, name: str, encoding: tiktoken.Encoding) -> None:
        if encoding.n_vocab > np.iinfo(np.uint16).max + 1:
            raise DataError(f"tokenizer {name}: {encoding.n_vocab} ids do not fit in two bytes")
        self.name = name
        self.n_vocab = encoding.n_vocab
        self.eot = encoding.eot_token
        self._encoding = encoding

    def encode(self, text: str) -> list[int]:
        """Byte-pair encoding of a text."""
        return self._encoding.encode_ordinary(text)

    def _encode(self, text: str, raw: bytes) -> NDArray[np.integer[Any]]:
        del raw
        # The call without Python lists: it releases the GIL and saves a tenth of the time.
        return self._encoding.encode_to_numpy(text, disallowed_special=())

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids."""
        return self._encoding.decode(list(ids))

    def token_bytes(self) -> Ids:
        """Length of each id's bytes."""
        table = np.zeros(self.n_vocab, dtype=np.uint16)
        special = self._encoding.special_tokens_set
        special_ids = {self._encoding.encode_single_token(token) for token in special}
        for i in range(self.n_vocab):
            if i not in special_ids:
                try:
                    table[i] = len(self._encoding.decode_single_token_bytes(i))
                except KeyError:  # an id that no text is encoded to
                    continue
        return table


def load_tokenizer(name: str) -> Tokenizer:
    """The tokenizer of a `tokenizer_encoding`.

    Raises:
        DataError: the name is not known, or its files can be neither found nor fetched.
    """
    if name == "bytes":
        return ByteTokenizer()
    if name not in TOKENIZER_VOCABULARIES:
        raise DataError(f"tokenizer {name!r}{did_you_mean(name, TOKENIZER_VOCABULARIES)}")
    return TiktokenTokenizer(name, _fetch_encoding(name))


def _fetch_encoding(name: str) -> tiktoken.Encoding:
    """Load an encoding in a thread, because tiktoken's download knows no time limit."""
    import tiktoken

    try:
        return answer_within(FETCH_SECONDS, lambda: tiktoken.get_encoding(name))
    except Exception as error:
        raise DataError(
            f"tokenizer {name}: its files could not be fetched ({_short_reason(error)}); without a "
            "network, set TIKTOKEN_CACHE_DIR to a folder that has them, or use the byte-level "
            "tokenizer: `--data demo`, or a local path with tokenizer_encoding bytes"
        ) from error


def _short_reason(error: Exception) -> str:
    """The last words of an exception of requests or tiktoken, on one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    if "Hash mismatch" in text:
        return "what came is not the published file"
    inner = error
    while isinstance(inner.__context__ or inner.__cause__, Exception):
        inner = inner.__cause__ or inner.__context__  # type: ignore[assignment]
    text = " ".join(str(inner).split()) or text
    return text if len(text) <= 120 else f"{type(error).__name__}: {text[:100]}..."
