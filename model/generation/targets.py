"""Targets written by an encoder-decoder for source texts."""

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
    seed: int | None = None,
    stop_at_eot: bool = True,
    use_cache: bool = True,
    on_progress: Callable[[int], None] | None = None,
) -> list[Continuation]:
    """Write the target of each source, from its beginning.

    A batch of sources is padded and masked; each is encoded once. Of a source longer than
    n_source_positions the first ones count, as in training. A result depends neither on its batch
    nor on the cache, but for the rounding of the logits (see `continue_texts`).

    Args:
        model: on `device`; comes back in the mode that it was in.
        device: where it computes.
        tokenizer: the model's own.
        sources: texts; an empty one is an end-of-text token.
        batch_size: sources read at once (B).
        max_new_tokens: most tokens of a target, at most n_target_positions.
        sampling: how tokens are chosen.
        seed: as in `model.generation.decoding.continue_texts`, like the rest.
        stop_at_eot: whether an end-of-text token ends a target.
        use_cache: keep the keys and values of source and target instead of computing those of the
            source and of the whole target again for each token.
        on_progress: called with the tokens generated so far.

    Raises:
        ValueError: a size is out of range, or the tokenizer is not the model's.
        CheckpointError: the model's logits are not finite.
    """
    if max_new_tokens > model.shape.n_target_positions:
        raise ValueError(
            f"{max_new_tokens} new tokens, but the model has positions for "
            f"{model.shape.n_target_positions} (n_target_positions)"
        )
    limit = model.shape.n_source_positions
    encoded = [ids[:limit] for ids in encode_texts(model, tokenizer, sources)]
    eot = tokenizer.eot_token

    def reader_of(rows: list[int]) -> Callable[[Sequence[list[int]]], Tensor]:
        longest = max(len(encoded[i]) for i in rows)
        ids = [encoded[i] + [eot] * (longest - len(encoded[i])) for i in rows]
        content = [[1.0] * len(encoded[i]) + [0.0] * (longest - len(encoded[i])) for i in rows]
        mask = torch.tensor(content, device=device)
        memory = model.encode(torch.tensor(ids, device=device), mask)
        cache = model.remember(memory, max_new_tokens, mask) if use_cache else None

        def read(texts: Sequence[list[int]]) -> Tensor:
            if cache is None:
                hidden = model.decode(torch.tensor(texts, device=device), memory, None, mask)
            else:  # all begin with the end-of-text token alone and grow by one token at each call
                last = torch.tensor([text[-1:] for text in texts], device=device)
                hidden = model.extend(last, cache)
            return model.token_logits(hidden[:, -1])

        return read

    with evaluating(model):
        return continue_prompts(
            [[eot]] * len(encoded),
            reader_of,
            tokenizer,
            batch_size,
            max_new_tokens,
            sampling,
            seed=seed,
            stop_at_eot=stop_at_eot,
            on_progress=on_progress,
        )
