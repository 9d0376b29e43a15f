"""Text from an encoder-decoder: the targets of source texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

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
    n_source_positions the first ones count, as in training; an empty one is an end-of-text token.
    Arguments, errors and what a result depends on else as in `continue_texts`.

    Args:
        max_new_tokens: most tokens after the prefix; at most n_target_positions with it.
        prefixes: the beginning of each target, left out of what is returned; None: nothing.
        use_cache: keep the keys and values of source and target instead of computing them again for
            each token.
    """
    eot, limit = tokenizer.eot_token, model.shape.n_target_positions
    begun = encode_texts(model, tokenizer, prefixes or [])
    targets = [[eot, *ids] if ids != [eot] else [eot] for ids in begun] or [[eot]] * len(sources)
    longest = max(map(len, targets), default=1) + max(max_new_tokens - 1, 0)
    if longest > limit:  # the last token is not read
        raise ValueError(
            f"{max_new_tokens} new tokens make {longest}, but the model has positions for {limit} "
            "(n_target_positions)"
        )
    length = model.shape.n_source_positions
    read = [ids[:length] for ids in encode_texts(model, tokenizer, sources)]

    def reader_of(rows: list[int]) -> Callable[[Sequence[list[int]]], Tensor]:
        ids, mask = left_padded([read[i] for i in rows], eot, device)
        memory = model.encode(ids, mask)
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
