"""Text from an encoder-decoder: the targets of source texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from model.config import SamplingConfig
from model.encoder_decoder import EncoderDecoderLM
from model.generation.decoding import (
    Continuation,
    Device,
    TextTokenizer,
    continue_prompts,
    encode_texts,
    left_padded,
)
from model.generation.sampling import evaluating


def write_targets(
    model: EncoderDecoderLM,
    device: Device,
    tokenizer: TextTokenizer,
    sources: Sequence[str],
    batch_size: int,
    max_new_tokens: int,
    sampling: SamplingConfig,
    *,
    prefixes: Sequence[str] | None = None,
    seed: int | None = None,
    stop_at_eot: bool = True,
    use_cache: bool = True,
    on_progress: Callable[[int], None] | None = None,
) -> list[Continuation]:
    """Write the target of each source, from its beginning or from a prefix.

    A batch of sources is padded and masked; each is encoded once. Of a source longer than
    n_source_positions the first ones count, as in training. A result depends neither on its batch
    nor on the cache, but for the rounding of the logits (see `continue_texts`).

    Args:
        model: on `device`; comes back in the mode that it was in.
        device: where it computes.
        tokenizer: the model's own.
        sources: texts; an empty one is an end-of-text token.
        batch_size: sources read at once (B).
        max_new_tokens: most tokens of a target after its prefix; at most n_target_positions with
            that.
        sampling: how tokens are chosen.
        prefixes: the beginning of each target, left out of what is returned; None: nothing.
        seed: as in `model.generation.decoding.continue_texts`, like the rest.
        stop_at_eot: whether an end-of-text token ends a target.
        use_cache: keep the keys and values of source and target instead of computing those of the
            source and of the whole target again for each token.
        on_progress: called with the tokens generated so far.

    Raises:
        ValueError: a size is out of range, or the tokenizer is not the model's.
        CheckpointError: the model's logits are not finite.
    """
    eot, limit = tokenizer.eot_token, model.shape.n_target_positions
    targets = [[eot]] * len(sources)
    if prefixes is not None:
        encoded = encode_texts(model, tokenizer, prefixes)
        targets = [
            [eot, *ids] if text else [eot] for text, ids in zip(prefixes, encoded, strict=True)
        ]
    n_prefix = max(map(len, targets), default=1)
    longest = n_prefix + max(max_new_tokens - 1, 0)  # the last token is not read
    if longest > limit:
        raise ValueError(
            f"{max_new_tokens} new tokens after {n_prefix}, but the model has positions for "
            f"{limit} (n_target_positions)"
        )
    length = model.shape.n_source_positions
    read = [ids[:length] for ids in encode_texts(model, tokenizer, sources)]

    def reader_of(rows: list[int]) -> Callable[[Sequence[list[int]]], Tensor]:
        longest_source = max(len(read[i]) for i in rows)
        padding = [longest_source - len(read[i]) for i in rows]
        ids = [read[i] + [eot] * n for i, n in zip(rows, padding, strict=True)]
        content = [[1.0] * (longest_source - n) + [0.0] * n for n in padding]
        mask = torch.tensor(content, device=device)
        memory = model.encode(torch.tensor(ids, device=device), mask)
        cache = model.remember(memory, longest, mask) if use_cache else None

        def logits_after(texts: Sequence[list[int]]) -> Tensor:
            if cache is None:
                ids, target_mask = left_padded(texts, eot, device)
                hidden = model.decode(ids, memory, target_mask, mask)
            else:
                unread = [text[n:] for text, n in zip(texts, cache.past.lengths, strict=True)]
                ids, target_mask = left_padded(unread, eot, device)
                hidden = model.extend(ids, cache, target_mask)
            return model.token_logits(hidden[:, -1])

        return logits_after

    with evaluating(model):
        return continue_prompts(
            targets,
            reader_of,
            tokenizer,
            batch_size,
            max_new_tokens,
            sampling,
            seed=seed,
            stop_at_eot=stop_at_eot,
            on_progress=on_progress,
        )
