"""Zero-shot sentiment: the word that a language model expects after a review.

Each review stands in a template whose next word would say the sentiment; the model's logits of two
words there give p(positive). Nothing is trained on the reviews.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from budgetsweep.errors import CheckpointError, ConfigError, DataError
from model.classification import positive_probabilities
from model.decoder import DecoderLM
from model.generation.decoding import Device, TextTokenizer, batches_by_length, score
from model.generation.sampling import require_finite
from trainer.sentiment.labelled import LabelledTexts, shuffled

TEXT = "{text}"
TEMPLATE = "Here is a yelp review.\n{text}\nThis review is"
WORDS = (" negative", " positive")
_SHOWN_TOKENS = 6


@dataclass(frozen=True)
class Prompts:
    """The reviews that are asked about, in the order of the data set."""

    rows: list[int]
    """Their numbers in the data set, from 0."""
    labels: list[int]
    texts: list[str]
    """The template with the review in it."""
    n_drawn: int
    """Reviews looked at."""
    n_dropped: int
    """Of these, how many are longer than the model's n_positions."""


def parse_template(template: str) -> tuple[str, str]:
    r"""What stands before and after the review.

    The two characters `\n` stand for a line end, so that it can be typed in a shell. No other
    brace or backslash means anything.

    Raises:
        ConfigError: {text} does not occur exactly once, or it is not Unicode text.
    """
    _require_unicode(template, "--template")
    parts = template.replace("\\n", "\n").split(TEXT)
    if len(parts) != 2:
        raise ConfigError(
            f"--template: {TEXT} occurs {len(parts) - 1} times; expected once, as in {TEMPLATE!r}"
        )
    return parts[0], parts[1]


def parse_words(words: str, template: str) -> tuple[str, str]:
    """The negative and the positive word, each with the space before it.

    The space is left out where the template ends in white space. `ConfigError`: not two different
    words with a comma between.
    """
    _require_unicode(words, "--words")
    found = [word.strip() for word in words.split(",")]
    if len(found) != 2 or not all(found) or found[0] == found[1]:
        raise ConfigError(f"--words {words!r}: expected two different words: negative,positive")
    space = "" if parse_template(template)[1][-1:].isspace() else " "
    return space + found[0], space + found[1]


def _require_unicode(text: str, option: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:  # bytes of a shell that are not UTF-8
        raise ConfigError(f"{option}: not UTF-8 text (character {error.start + 1})") from error


def word_tokens(tokenizer: TextTokenizer, words: Sequence[str], n_vocab: int) -> list[int]:
    """The token of each word; `ConfigError` for a word of several, or not one of the model's."""
    encode = getattr(tokenizer, "encode_ordinary", tokenizer.encode)
    tokens = []
    for word in words:
        ids = encode(word)
        if len(ids) != 1:
            raise ConfigError(_not_one_token(word, ids, tokenizer))
        if ids[0] >= n_vocab:
            raise ConfigError(
                f"--words: {word!r} is token {ids[0]}, but the model has ids 0 to {n_vocab - 1}: "
                "the tokenizer is another one than the model's"
            )
        tokens.append(ids[0])
    return tokens


def _not_one_token(word: str, ids: Sequence[int], tokenizer: TextTokenizer) -> str:
    parts = ", ".join(repr(tokenizer.decode([i])) for i in ids[:_SHOWN_TOKENS])
    more = ", ..." if len(ids) > _SHOWN_TOKENS else ""
    advice = "choose other words, such as bad,good"
    if getattr(tokenizer, "name", None) == "bytes":
        advice = "here that is one letter: --words n,p and a --template that ends in a space"
    return (
        f"--words: {word!r} is {len(ids)} tokens ({parts}{more}), expected one, whose probability "
        f"the model gives at once: {advice}"
    )


def make_prompts(
    data: LabelledTexts,
    template: str,
    tokenizer: TextTokenizer,
    n_positions: int,
    n_vocab: int,
    *,
    limit: int | None,
    seed: int,
    only_fitting: bool = False,
) -> Prompts:
    """Draw `limit` reviews (None: all) and put them into the template; drop those that do not fit.

    Drawn in the order of `trainer.sentiment.labelled.shuffled`: from those that fit with
    `only_fitting`, so that there are `limit` of them if the data set has as many; else from all.

    Raises:
        ConfigError: the tokenizer is not the model's.
        DataError: no review fits.
    """
    before, after = template.split(TEXT)
    encode = getattr(tokenizer, "encode_ordinary", tokenizer.encode)
    order = shuffled(len(data), seed)
    if limit is not None and not only_fitting:
        order = order[:limit]
    kept: dict[int, str] = {}
    for row in order:
        prompt = before + data.texts[row] + after
        ids = encode(prompt)
        if max(ids, default=0) >= n_vocab:
            raise ConfigError(
                f"token {max(ids)} in review {row}, but the model has ids 0 to {n_vocab - 1}: the "
                "tokenizer is another one than the model's"
            )
        if len(ids) <= n_positions:
            kept[row] = prompt
    rows = sorted(list(kept)[:limit])
    if not rows:
        raise DataError(
            f"{data.description}: none of {len(order):,} reviews fits: with the template each is "
            f"longer than the model's n_positions = {n_positions} tokens"
        )
    return Prompts(
        rows=rows, labels=[data.labels[row] for row in rows], texts=[kept[row] for row in rows],
        n_drawn=len(order), n_dropped=len(order) - len(kept),
    )  # fmt: skip


def score_words(
    model: DecoderLM,
    device: Device,
    tokenizer: TextTokenizer,
    texts: Sequence[str],
    tokens: Sequence[int],
    batch_size: int,
    on_progress: Callable[[int], None] | None = None,
) -> Tensor:
    """p(positive) of each text (N,) in float64; of `score`'s logits only two columns are kept.

    Args:
        texts: prompts of at most n_positions tokens.
        tokens: of the negative and the positive word.
        on_progress: called after each batch with the texts read so far.

    Raises:
        CheckpointError: a logit is not finite.
    """
    encode = getattr(tokenizer, "encode_ordinary", tokenizer.encode)
    logits = torch.empty(len(texts), 2, dtype=torch.float64)
    done = 0
    for batch in batches_by_length([encode(text) for text in texts], batch_size):
        found = score(model, device, tokenizer, [texts[i] for i in batch], batch_size)
        require_finite(found)
        logits[batch] = found[:, list(tokens)].double()
        done += len(batch)
        if on_progress is not None:
            on_progress(done)
    try:
        return positive_probabilities(logits, [0, 1])
    except ValueError as error:  # two words at minus infinity
        raise CheckpointError(f"the model's {error}") from error
