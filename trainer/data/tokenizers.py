"""Text to token ids and back: tiktoken's encodings, and plain UTF-8 bytes. No torch."""

from __future__ import annotations

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


class Tokenizer:
    """One of tiktoken's encodings. Text that spells a special token stays plain text."""

    def __init__(self, name: str, encoding: tiktoken.Encoding) -> None:
        self.name = name
        self.n_vocab = TOKENIZER_VOCABULARIES[name]
        self.eot = self.eot_token = END_OF_TEXT[name]
        """Id that ends each document, under our name and tiktoken's."""
        self._encoding = encoding

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without an end-of-text id."""
        return self._ids(text).tolist()

    def _ids(self, text: str) -> NDArray[np.integer[Any]]:
        # The call without Python lists: it releases the GIL and saves a tenth of the time.
        return self._encoding.encode_to_numpy(text, disallowed_special=())

    def encode_documents(self, texts: Sequence[str]) -> list[Ids]:
        """Ids of each text followed by one end-of-text id, as uint16; threads may run this at once.

        Raises:
            UnicodeEncodeError: a text has lone surrogates and so is not Unicode text.
        """
        documents = []
        for text in texts:
            found = self._ids(text)
            ids = np.empty(len(found) + 1, dtype=np.uint16)
            ids[:-1] = found
            ids[-1] = self.eot
            documents.append(ids)
        return documents

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids; bytes that are not UTF-8 become U+FFFD, end-of-text `<|endoftext|>`."""
        return self._encoding.decode(list(ids))

    def token_bytes(self) -> Ids:
        """(n_vocab,) UTF-8 bytes of text that each id stands for; 0 for end-of-text."""
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


@final
class ByteTokenizer(Tokenizer):
    """The identity on UTF-8 bytes, and 256 as end-of-text. Needs no files."""

    def __init__(self) -> None:
        import tiktoken

        ranks = {bytes([i]): i for i in range(256)}
        special = {"<|endoftext|>": END_OF_TEXT["bytes"]}
        encoding = tiktoken.Encoding(
            "bytes", pat_str=r"[\s\S]", mergeable_ranks=ranks, special_tokens=special
        )
        super().__init__("bytes", encoding)

    def _ids(self, text: str) -> NDArray[np.integer[Any]]:
        return np.frombuffer(text.encode(), dtype=np.uint8)


def load_tokenizer(name: str) -> Tokenizer:
    """The tokenizer of a `tokenizer_encoding`.

    Raises:
        DataError: the name is not known, or its files can be neither found nor fetched.
    """
    if name == "bytes":
        return ByteTokenizer()
    if name not in TOKENIZER_VOCABULARIES:
        raise DataError(f"tokenizer {name!r}{did_you_mean(name, TOKENIZER_VOCABULARIES)}")
    import tiktoken

    try:
        encoding = answer_within(FETCH_SECONDS, lambda: tiktoken.get_encoding(name))
    except Exception as error:
        raise DataError(
            f"tokenizer {name}: its files could not be fetched ({_short_reason(error)}); without a "
            "network, set TIKTOKEN_CACHE_DIR to a folder that has them, or use the byte-level "
            "tokenizer: `--data demo`, or a local path with tokenizer_encoding bytes"
        ) from error
    return Tokenizer(name, encoding)


def _short_reason(error: BaseException) -> str:
    """The last words of an exception of requests or tiktoken, on one line."""
    if "Hash mismatch" in str(error):
        return "what came is not the published file"
    while inner := error.__cause__ or error.__context__:
        error = inner
    return " ".join(str(error).split())[:120] or type(error).__name__
