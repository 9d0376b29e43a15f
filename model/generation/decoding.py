"""Text from a language model, and its opinion of what comes next.

**Contexts longer than n_positions.** A prompt longer than the model's n_positions (P) is read from
its last P tokens. When prompt and continuation have filled all P positions, the older half leaves:
the last P // 2 tokens are read again from position 0, and there is room for P - P // 2 more. So a
token is predicted from P // 2 + 1 to P tokens before it, and with a cache the reading again costs
about one token per token. The rule depends on the number of tokens alone, so it is the same with
and without a cache, in any batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from model.config import SamplingConfig
from model.decoder import DecoderLM
from model.generation.sampling import choose_tokens, evaluating
from model.kv_cache import KeyValueCache

if TYPE_CHECKING:
    from model.encoder_decoder import EncoderDecoderLM

Device = torch.device | str


class TextTokenizer(Protocol):
    """What is asked of a tokenizer; a `tiktoken.Encoding` has it, and `trainer.data.tokenizers`.

    Where it also has `n_vocab`, no id beyond is generated.
    """

    @property
    def eot_token(self) -> int:
        """The end-of-text id."""

    def encode(self, text: str, /) -> list[int]:
        """Ids of a text."""

    def decode(self, ids: Sequence[int], /) -> str:
        """Text of ids."""


@dataclass(frozen=True)
class Continuation:
    """What a model wrote after a prefix."""

    text: str
    """Without the prefix, and without the end-of-text token that ended it."""
    ids: tuple[int, ...]
    """The tokens of `text`."""
    finish_reason: Literal["length", "eot"]
    """Why it ended: as many tokens as were asked for, or an end-of-text token."""


def context_start(n_tokens: int, n_positions: int) -> int:
    """Index of the first token that the model sees of `n_tokens`; see the module's text."""
    room = n_positions - n_positions // 2
    return max(0, -(-(n_tokens - n_positions) // room) * room)


def generate(
    model: DecoderLM,
    device: Device,
    tokenizer: TextTokenizer,
    prefixes: list[str],
    batch_size: int,
    max_new_tokens: int = 32,
    temperature: float = 0.0,
    *,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    stop_at_eot: bool = False,
    use_cache: bool = True,
) -> list[str]:
    """Continue each prefix; the continuations only, in the order of the prefixes.

    As in the course, each has `max_new_tokens` tokens, end-of-text tokens included, unless
    `stop_at_eot`. Arguments and errors as in `continue_texts`.
    """
    continuations = continue_texts(
        model, device, tokenizer, prefixes, batch_size, max_new_tokens,
        SamplingConfig(temperature=temperature, top_k=top_k, top_p=top_p),
        seed=seed, stop_at_eot=stop_at_eot, use_cache=use_cache,
    )  # fmt: skip
    return [continuation.text for continuation in continuations]


def continue_texts(
    model: DecoderLM,
    device: Device,
    tokenizer: TextTokenizer,
    prefixes: Sequence[str],
    batch_size: int,
    max_new_tokens: int,
    sampling: SamplingConfig,
    *,
    seed: int | None = None,
    stop_at_eot: bool = False,
    use_cache: bool = True,
    on_progress: Callable[[int], None] | None = None,
) -> list[Continuation]:
    """Continue each prefix.

    Prefixes of similar length share a batch, left-padded with the end-of-text token and masked. A
    result depends neither on its batch nor on the cache, but for the rounding of the logits: where
    two tokens are as good as equal, or a draw falls on the edge between two, rounding may decide.
    No dropout, no autocast; the model comes back in the mode that it was in.

    Args:
        tokenizer: the model's own. Text that spells a special token stays plain text.
        prefixes: texts; an empty one stands for the beginning of a document, which is an
            end-of-text token. Longer than n_positions: see the module's text.
        batch_size: prefixes read at once (B).
        seed: draw t of prefix i depends on (seed, i, t) only, so it is the same in any batch, at
            any temperature and for any max_new_tokens; None: taken from torch's global generator.
        stop_at_eot: whether an end-of-text token ends a continuation.
        use_cache: keep keys and values instead of reading the whole context for each token.
        on_progress: called after each step with the tokens generated so far, out of len(prefixes) *
            max_new_tokens; what ends early counts in full at the end of its batch.

    Raises:
        ValueError: a size is out of range, or the tokenizer is not the model's.
        CheckpointError: the model's logits are not finite.
    """
    eot = tokenizer.eot_token
    prompts = [ids[-model.n_positions :] for ids in encode_texts(model, tokenizer, prefixes)]
    kind = _CachedReader if use_cache else _Reader
    with evaluating(model):
        return continue_prompts(
            prompts,
            lambda _: kind(model, device, eot, max_new_tokens),
            tokenizer,
            batch_size,
            max_new_tokens,
            sampling,
            seed=seed,
            stop_at_eot=stop_at_eot,
            on_progress=on_progress,
        )


def continue_prompts(
    prompts: Sequence[list[int]],
    reader_of: Callable[[list[int]], Callable[[Sequence[list[int]]], Tensor]],
    tokenizer: TextTokenizer,
    batch_size: int,
    max_new_tokens: int,
    sampling: SamplingConfig,
    *,
    seed: int | None = None,
    stop_at_eot: bool = False,
    on_progress: Callable[[int], None] | None = None,
) -> list[Continuation]:
    """Continue token ids with any model; arguments and errors else as in `continue_texts`.

    Args:
        prompts: ids; those of similar length are read together.
        reader_of: for the indices of a batch of prompts, what gives the logits (B, V) of the token
            after each of its texts: prompts and all that was chosen since.
    """
    if batch_size < 1 or max_new_tokens < 0:
        raise ValueError(
            f"batch_size = {batch_size} must be at least 1, max_new_tokens = {max_new_tokens} "
            "at least 0"
        )
    if seed is None:
        seed = 0 if sampling.temperature == 0 else int(torch.randint(2**62, ()))
    eot = tokenizer.eot_token
    n_vocab = getattr(tokenizer, "n_vocab", None)  # a model's may be rounded up
    report = on_progress or (lambda _: None)
    results: dict[int, Continuation] = {}
    for rows in batches_by_length(prompts, batch_size):
        done = len(results) * max_new_tokens
        texts = [list(prompts[i]) for i in rows]
        draws = _draws(seed, rows, max_new_tokens)
        reader = reader_of(rows)
        ended = [False] * len(rows)
        for step in range(max_new_tokens):
            chosen = choose_tokens(reader(texts)[:, :n_vocab], sampling, draws[:, step])
            for text, token in zip(texts, chosen, strict=True):
                text.append(token)
            report(done + (step + 1) * len(rows))
            ended = [a or token == eot for a, token in zip(ended, chosen, strict=True)]
            if stop_at_eot and all(ended):
                break
        for i, text in zip(rows, texts, strict=True):
            ids = text[len(prompts[i]) :]
            results[i] = _continuation(ids, eot if stop_at_eot else None, tokenizer)
        report(done + len(rows) * max_new_tokens)
    return [results[i] for i in range(len(prompts))]


def score(
    model: DecoderLM, device: Device, tokenizer: TextTokenizer, texts: list[str], batch_size: int
) -> Tensor:
    """Logits (N, V) of the token after each text, on the CPU, in the order of the texts.

    Texts are those of `continue_texts`; of one longer than n_positions the last n_positions tokens
    count. Left-padded with end-of-text and masked; no dropout, the model's mode comes back.

    Raises:
        ValueError: batch_size is less than 1, or the tokenizer is not the model's.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size = {batch_size}, expected at least 1")
    prompts = [ids[-model.n_positions :] for ids in encode_texts(model, tokenizer, texts)]
    logits = torch.empty(len(prompts), model.shape.n_vocab, dtype=model.head_weight.dtype)
    with evaluating(model):
        for rows in batches_by_length(prompts, batch_size):
            reader = _Reader(model, device, tokenizer.eot_token, 0)
            logits[rows] = reader([prompts[i] for i in rows]).to(logits)
    return logits


class _Reader:
    """Logits (B, V) of the token after each text, from its whole context."""

    def __init__(self, model: DecoderLM, device: Device, pad: int, max_new_tokens: int) -> None:
        self.model = model
        self.device = device
        self.pad = pad
        self.max_new_tokens = max_new_tokens

    def __call__(self, texts: Sequence[list[int]]) -> Tensor:
        """A text is at most n_positions tokens of prompt, then what was generated."""
        contexts = list(map(self._context, texts))
        hidden = self.model.hidden(*left_padded(contexts, self.pad, self.device))
        return self.model.token_logits(hidden[:, -1])

    def _context(self, text: list[int]) -> list[int]:
        return text[context_start(len(text), self.model.n_positions) :]


class _CachedReader(_Reader):
    """The same for texts that grow by one token at each call, each token read once."""

    cache: KeyValueCache | None = None

    def __call__(self, texts: Sequence[list[int]]) -> Tensor:
        contexts = list(map(self._context, texts))
        if self.cache is None:
            longest = max(map(len, contexts)) + self.max_new_tokens
            self.cache = self._new_cache(len(texts), min(longest, self.model.n_positions))
            hidden = self._extend(contexts, self.cache)
        else:
            # Where a context has lost its older half, the rest is read again: it has moved.
            moved = [i for i, c in enumerate(contexts) if len(c) <= self.cache.lengths[i]]
            if moved:
                rest = [contexts[i][:-1] for i in moved]
                fresh = self._new_cache(len(moved), len(rest[0]))
                if rest[0]:
                    self._extend(rest, fresh)
                self.cache.replace(moved, fresh)
            hidden = self._extend([context[-1:] for context in contexts], self.cache)
        return self.model.token_logits(hidden[:, -1])

    def _new_cache(self, n_rows: int, capacity: int) -> KeyValueCache:
        return KeyValueCache(self.model.shape, n_rows, capacity, self.model.head_weight)

    def _extend(self, contexts: list[list[int]], cache: KeyValueCache) -> Tensor:
        ids, mask = left_padded(contexts, self.pad, self.device)
        return self.model.extend(ids, cache, mask)


def encode_texts(
    model: DecoderLM | EncoderDecoderLM, tokenizer: TextTokenizer, texts: Sequence[str]
) -> list[list[int]]:
    """Ids of each text; an empty one is an end-of-text token.

    Raises:
        ValueError: the tokenizer is not the model's.
    """
    # tiktoken's encode refuses text that spells a special token; encode_ordinary takes it as text.
    encode = getattr(tokenizer, "encode_ordinary", tokenizer.encode)
    prompts = [encode(text) or [tokenizer.eot_token] for text in texts]
    highest = max(max(ids) for ids in [[tokenizer.eot_token], *prompts])
    if highest >= model.shape.n_vocab:
        raise ValueError(
            f"token id {highest}, but the model has n_vocab = {model.shape.n_vocab}: expected the "
            "tokenizer that the model was trained with"
        )
    return prompts


def left_padded(
    texts: Sequence[list[int]], pad: int, device: Device
) -> tuple[Tensor, Tensor | None]:
    """Ids (B, S) and mask (B, S); None where nothing is padding."""
    longest = max(map(len, texts))
    padding = [longest - len(text) for text in texts]
    ids = [[pad] * n + text for n, text in zip(padding, texts, strict=True)]
    mask = None
    if any(padding):
        mask = torch.tensor([[0.0] * n + [1.0] * (longest - n) for n in padding]).to(device)
    return torch.tensor(ids, device=device), mask


def batches_by_length(prompts: Sequence[list[int]], batch_size: int) -> Iterator[list[int]]:
    """Indices of prompts, longest first: what needs the most memory shows at once."""
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    return (order[i : i + batch_size] for i in range(0, len(order), batch_size))


def _draws(seed: int, rows: Sequence[int], n: int) -> Tensor:
    """Uniform numbers (B, n): row by row from (seed, row), the first n of an endless sequence."""
    draws = [np.random.default_rng((seed, row)).random(n) for row in rows]
    return torch.from_numpy(np.stack(draws))


def _continuation(ids: list[int], eot: int | None, tokenizer: TextTokenizer) -> Continuation:
    """What was generated, up to the first `eot` if that ends it."""
    ended = eot is not None and eot in ids
    if eot is not None and ended:
        ids = ids[: ids.index(eot)]
    return Continuation(tokenizer.decode(ids), tuple(ids), "eot" if ended else "length")
