"""Tokenizers: the real tiktoken client against localhost and a cache folder, and plain bytes."""

from __future__ import annotations

import hashlib
import http.server
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import tiktoken
import tiktoken.registry
from hypothesis import given
from hypothesis import strategies as st
from tiktoken.load import data_gym_to_mergeable_bpe_ranks

from budgetsweep.errors import DataError
from tests.support.data_files import fill_tiktoken_cache, needs_real_data, tiny_bpe
from tests.support.hub_server import Silent
from trainer.config import TOKENIZER_VOCABULARIES
from trainer.data import tokenizers
from trainer.data.tokenizers import END_OF_TEXT, ByteTokenizer, load_tokenizer

PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""


@pytest.fixture
def point_gpt2_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let the real client build `gpt2` from the small BPE at another address."""
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "tik"))

    def point(base: str, vocab_hash: str | None = None) -> None:
        vocab, encoder = tiny_bpe()
        ranks = len(vocab.decode().splitlines()) - 1 + 256

        def constructor():
            merges = data_gym_to_mergeable_bpe_ranks(
                vocab_bpe_file=f"{base}/vocab.bpe",
                encoder_json_file=f"{base}/encoder.json",
                vocab_bpe_hash=vocab_hash or hashlib.sha256(vocab).hexdigest(),
                encoder_json_hash=hashlib.sha256(encoder).hexdigest(),
            )
            return {"name": "gpt2", "pat_str": PATTERN, "mergeable_ranks": merges,
                    "special_tokens": {"<|endoftext|>": ranks}}  # fmt: skip

        tiktoken.list_encoding_names()  # fills the registry
        monkeypatch.setitem(tiktoken.registry.ENCODING_CONSTRUCTORS, "gpt2", constructor)
        monkeypatch.setattr(tiktoken.registry, "ENCODINGS", {})

    return point


class Files(http.server.BaseHTTPRequestHandler):
    """Serves the small BPE."""

    def do_GET(self):
        content = dict(zip(("/vocab.bpe", "/encoder.json"), tiny_bpe(), strict=True))[self.path]
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args: object):
        pass


def test_the_client_fetches_and_caches(tmp_path, serve, point_gpt2_to):
    base = serve(Files)
    point_gpt2_to(base)
    tokenizer = load_tokenizer("gpt2")
    text = "the alpha of the inn: naïve 日本"
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert len(ids) < len(text.encode())  # merges were used
    names = {
        hashlib.sha1(f"{base}/{n}".encode()).hexdigest() for n in ("vocab.bpe", "encoder.json")
    }
    assert {p.name for p in (tmp_path / "tik").iterdir()} == names


def test_a_cache_folder_needs_no_network(tmp_path, point_gpt2_to):
    base = "http://127.0.0.1:9"  # nothing listens there
    fill_tiktoken_cache(tmp_path / "tik", *tiny_bpe(), base=base)
    point_gpt2_to(base)
    assert load_tokenizer("gpt2").encode(" the") == [258]


def test_no_network_is_one_line_with_the_ways_on(point_gpt2_to):
    point_gpt2_to("http://127.0.0.1:9")
    started = time.monotonic()
    with pytest.raises(DataError) as caught:
        load_tokenizer("gpt2")
    assert time.monotonic() - started < 20
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 400
    for word in ("gpt2", "could not be fetched", "TIKTOKEN_CACHE_DIR", "--data demo", "local path"):
        assert word in message


def test_a_server_that_never_answers_is_given_up(monkeypatch, serve, point_gpt2_to):
    monkeypatch.setattr(tokenizers, "FETCH_SECONDS", 0.3)
    point_gpt2_to(serve(Silent))
    # The client holds a lock while it waits; a second one keeps the other tests free of it.
    monkeypatch.setattr(tiktoken.registry, "_lock", type(tiktoken.registry._lock)())
    with pytest.raises(DataError, match="no answer within 0 s"):
        load_tokenizer("gpt2")


def test_a_wrong_download_is_refused(serve, point_gpt2_to):
    point_gpt2_to(serve(Files), vocab_hash="0" * 64)
    with pytest.raises(DataError, match="not the published file"):
        load_tokenizer("gpt2")


def test_documents_end_with_one_end_of_text(serve, point_gpt2_to):
    point_gpt2_to(serve(Files))
    tokenizer = load_tokenizer("gpt2")
    texts = ["the alpha", "", "literal <|endoftext|> stays text", "日本\n\n the"]
    made = tokenizer.encode_documents(texts)
    for text, ids in zip(texts, made, strict=True):
        assert ids.dtype.name == "uint16"
        assert ids.tolist() == [*tokenizer.encode(text), tokenizer.eot]
        assert ids.tolist().count(tokenizer.eot) == 1
        assert int(tokenizer.token_bytes()[ids].sum()) == len(text.encode())
    assert tokenizer.eot == tokenizer.eot_token == tokenizer.n_vocab - 1
    with pytest.raises(UnicodeEncodeError):
        tokenizer.encode_documents(["lone \ud800 surrogate"])


@needs_real_data
def test_gpt2_is_gpt2(gpt2: Path):
    tokenizer = load_tokenizer("gpt2")
    assert (tokenizer.n_vocab, tokenizer.eot) == (50257, 50256)
    # Ids published with the GPT-2 release notes of tiktoken.
    assert tokenizer.encode("hello world") == [31373, 995]
    text = "Don't stop,  naïve 日本 <|endoftext|>\n\tEnd "
    direct = tiktoken.get_encoding("gpt2").encode_ordinary(text)
    assert tokenizer.encode_documents([text])[0].tolist() == [*direct, 50256]
    assert int(tokenizer.token_bytes()[direct].sum()) == len(text.encode())
    assert tokenizer.token_bytes()[50256] == 0


@given(st.text())
def test_bytes_are_bytes(text: str):
    tokenizer = ByteTokenizer()
    ids = tokenizer.encode_documents([text])[0]
    assert bytes(ids[:-1].tolist()) == text.encode()
    assert ids[-1] == 256
    assert tokenizer.decode(ids[:-1].tolist()) == text
    assert tokenizer.encode(text) == ids[:-1].tolist()
    assert int(tokenizer.token_bytes()[ids].sum()) == len(text.encode())


def test_half_a_character_is_replaced():
    assert ByteTokenizer().decode([0xE6, 0x97, 256]) == "\ufffd<|endoftext|>"


def test_known_names_and_sizes():
    assert END_OF_TEXT.keys() == TOKENIZER_VOCABULARIES.keys()
    tokenizer = load_tokenizer("bytes")
    assert (tokenizer.n_vocab, tokenizer.eot) == (257, 256)
    with pytest.raises(DataError, match="did you mean 'gpt2'"):
        load_tokenizer("gtp2")
