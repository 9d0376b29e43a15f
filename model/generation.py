"""Text from a language model, and its opinion of what comes next.

**Contexts longer than n_positions.** A prompt longer than the model's n_positions (P) is read from
its last P tokens. When prompt and continuation have filled all P positions, the older half leaves:
the last P // 2 tokens are read again from position 0, and there is room for P - P // 2 more. So a
token is predicted from P // 2 + 1 to P tokens before it, and with a cache the reading again costs
about one token a token. The rule depends on the number of tokens alone, so it is the same with and
without a cache, in any batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from budgetsweep.errors import CheckpointError
from model.cache import KeyValueCache
from model.config import SamplingConfig
from model.decoder import DecoderLM

Device = torch.device | str

FIRST_LOOK = 1024
"""Tokens among which the nucleus of top_p is looked for first."""


class TextTokenizer(Protocol):
    """What is asked of a tokenizer; a `tiktoken.Encoding` has it, and `trainer.tokenizers`.

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


def softmax_with_temperature(logits: Tensor, temperature: float) -> Tensor:
    """softmax(logits / temperature) over the last dimension.

    Args:
        logits: (B, V).
        temperature: 0 is greedy: all probability on the largest logit, on the first of equals.

    Returns:
        (B, V) probabilities, at least float32.

    Raises:
        ValueError: the temperature is negative, infinite or not a number.
    """
    temperature = SamplingConfig(temperature=temperature).temperature
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if temperature == 0:
        return torch.zeros_like(logits).scatter_(-1, logits.argmax(dim=-1, keepdim=True), 1.0)
    # Neither the largest logit divided by a tiny number nor that number itself may overflow.
    below_top = logits - logits.amax(dim=-1, keepdim=True)
    return (below_top / max(temperature, torch.finfo(logits.dtype).tiny)).softmax(dim=-1)


def next_token_probabilities(logits: Tensor, sampling: SamplingConfig) -> Tensor:
    """What tokens are drawn from: (B, V), at least float32, each row adding up to top_p or more."""
    if sampling.top_k is not None and sampling.top_k < logits.shape[1]:
        kth = logits.topk(sampling.top_k, dim=1).values[:, -1:]
        logits = logits.masked_fill(logits < kth, -torch.inf)
    probabilities = softmax_with_temperature(logits, sampling.temperature)
    if sampling.top_p is None or sampling.top_p == 1.0:
        return probabilities
    ordered, order = _most_likely(probabilities, sampling.top_p)
    before = ordered.cumsum(dim=1) - ordered
    ordered = ordered.masked_fill(before >= sampling.top_p, 0.0)
    return torch.zeros_like(probabilities).scatter_(1, order, ordered)


def _most_likely(probabilities: Tensor, enough: float) -> tuple[Tensor, Tensor]:
    """The largest probabilities of each row in falling order and their ids, both (B, <= V).

    All of them, unless few add up to `enough`: sorting a large vocabulary takes longer than a step
    of a small model.
    """
    if probabilities.shape[1] > FIRST_LOOK:
        values, ids = probabilities.topk(FIRST_LOOK, dim=1)
        if (values.sum(dim=1) >= enough).all():
            return values, ids
    values, ids = probabilities.sort(dim=1, descending=True, stable=True)
    return values, ids


def choose_tokens(logits: Tensor, sampling: SamplingConfig, draws: Tensor) -> list[int]:
    """One token a row, by inverting the cumulative distribution.

    Args:
        logits: (B, V).
        sampling: how to choose.
        draws: (B,) uniform numbers in [0, 1), on any device; not looked at when greedy.

    Raises:
        CheckpointError: a logit is NaN or +inf.
    """
    require_finite(logits)
    if sampling.temperature == 0:
        return logits.argmax(dim=1).tolist()
    wide = torch.float32 if logits.device.type == "mps" else torch.float64
    cumulative = next_token_probabilities(logits, sampling).to(wide).cumsum(dim=1)
    at = draws.to(logits.device, wide)[:, None] * cumulative[:, -1:]
    chosen = torch.searchsorted(cumulative, at, right=True)  # the first token that reaches past it
    return chosen.squeeze(1).clamp(max=logits.shape[1] - 1).tolist()


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

    As in the course, each continuation has `max_new_tokens` tokens, end-of-text tokens included,
    unless `stop_at_eot`. Arguments and errors as in `continue_texts`.
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
        model: on `device`.
        device: where it computes.
        tokenizer: the model's own. Text that spells a special token stays plain text.
        prefixes: texts; an empty one stands for the beginning of a document, which is an
            end-of-text token. Longer than n_positions: see the module's text.
        batch_size: prefixes read at once (B).
        max_new_tokens: most tokens of a continuation.
        sampling: how tokens are chosen.
        seed: draw t of prefix i depends on (seed, i, t) only, so it is the same in any batch, at
            any temperature and for any max_new_tokens; None: taken from torch's global generator.
        stop_at_eot: whether an end-of-text token ends a continuation.
        use_cache: keep keys and values instead of reading the whole context for each token.
        on_progress: called after each step with the tokens generated so far, out of
            len(prefixes) * max_new_tokens; what ends early counts in full at the end of its batch.

    Raises:
        ValueError: a size is out of range, or the tokenizer is not the model's.
        CheckpointError: the model's logits are not finite.
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
    prompts = _windows(model, tokenizer, prefixes)
    report = on_progress or (lambda _: None)
    results: dict[int, Continuation] = {}
    with evaluating(model):
        for rows in _batches(prompts, batch_size):
            done = len(results) * max_new_tokens
            texts = [list(prompts[i]) for i in rows]
            draws = _draws(seed, rows, max_new_tokens)
            reader = (_CachedReader if use_cache else _Reader)(model, device, eot, max_new_tokens)
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
    """Logits of the token after each text, left-padded with end-of-text and masked.

    Args:
        model: on `device`; comes back in the mode that it was in. No dropout.
        device: where it computes.
        tokenizer: the model's own.
        texts: as the prefixes of `continue_texts`; of a text longer than n_positions the last
            n_positions tokens count.
        batch_size: texts read at once.

    Returns:
        (N, V) on the CPU, in the order of the texts.

    Raises:
        ValueError: batch_size is less than 1, or the tokenizer is not the model's.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size = {batch_size}, expected at least 1")
    prompts = _windows(model, tokenizer, texts)
    logits = torch.empty(len(prompts), model.shape.n_vocab, dtype=model.head_weight.dtype)
    with evaluating(model):
        for rows in _batches(prompts, batch_size):
            reader = _Reader(model, device, tokenizer.eot_token)
            logits[rows] = reader([prompts[i] for i in rows]).to(logits)
    return logits


class _Reader:
    """Logits (B, V) of the token after each text, from its whole context."""

    def __init__(self, model: DecoderLM, device: Device, pad: int, max_new_tokens: int = 0) -> None:
        self.model = model
        self.device = device
        self.pad = pad
        self.max_new_tokens = max_new_tokens

    def __call__(self, texts: Sequence[list[int]]) -> Tensor:
        """A text is at most n_positions tokens of prompt, then what was generated."""
        hidden = self.model.hidden(*self._left_padded(list(map(self._context, texts))))
        return self.model.token_logits(hidden[:, -1])

    def _context(self, text: list[int]) -> list[int]:
        return text[context_start(len(text), self.model.n_positions) :]

    def _left_padded(self, contexts: list[list[int]]) -> tuple[Tensor, Tensor | None]:
        """Ids (B, S) and mask (B, S); None where nothing is padding."""
        longest = max(map(len, contexts))
        padding = [longest - len(context) for context in contexts]
        ids = [[self.pad] * n + context for n, context in zip(padding, contexts, strict=True)]
        mask = None
        if any(padding):
            mask = torch.tensor([[0.0] * n + [1.0] * (longest - n) for n in padding])
            mask = mask.to(self.device)
        return torch.tensor(ids, device=self.device), mask


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
        ids, mask = self._left_padded(contexts)
        return self.model.extend(ids, cache, mask)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """No dropout and no gradients within; the mode of before comes back."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def require_finite(logits: Tensor) -> None:
    """Refuse logits (B, V) of which the largest of a row is NaN or infinite.

    Raises:
        CheckpointError: so it is.
    """
    if not logits.amax(dim=1).isfinite().all():
        raise CheckpointError(
            "the model's logits of the next token are not finite: its weights are damaged, or its "
            "training diverged"
        )


def _windows(model: DecoderLM, tokenizer: TextTokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Ids of each text, at most the last n_positions."""
    # tiktoken's encode refuses text that spells a special token; encode_ordinary takes it as text.
    encode = getattr(tokenizer, "encode_ordinary", tokenizer.encode)
    prompts = [encode(text) or [tokenizer.eot_token] for text in texts]
    highest = max(max(ids) for ids in [[tokenizer.eot_token], *prompts])
    if highest >= model.shape.n_vocab:
        raise ValueError(
            f"token id {highest}, but the model has n_vocab = {model.shape.n_vocab}: expected the "
            "tokenizer that the model was trained with"
        )
    return [ids[-model.n_positions :] for ids in prompts]


def _batches(prompts: Sequence[list[int]], batch_size: int) -> Iterator[list[int]]:
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
