"""Encoder-only language model, and its training by masked-token prediction (BERT's objective).

Each position sees all content, before and after it. So there is no next token to predict; instead
some tokens are hidden from the model, and it is trained to name them (Devlin et al. 2019, 3.1).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from model.transformer import Transformer

P_MASK, P_RANDOM = 0.8, 0.1
"""Shares of the tokens to predict that become the mask and a random id; the rest stays."""


class EncoderLM(Transformer):
    """Encoder-only language model: `forward` gives the logits of the token at each position.

    It has the decoder's shape, parameters and charge in `nanogpt`, and n_vocab counts the mask
    token.
    """

    causal = False


class CorruptedTokens(NamedTuple):
    """A batch for masked-token training."""

    inputs: Tensor
    """(B, S) ids that the model reads."""
    chosen: Tensor
    """bool (B, S): the positions to predict."""
    targets: Tensor
    """(N,) original ids at the chosen positions, in the order of `chosen`, row by row."""


def corrupt_tokens(
    input_ids: Tensor,
    n_vocab: int,
    mask_id: int,
    n_chosen: int,
    *,
    generator: torch.Generator,
    special_ids: Iterable[int] = (),
) -> CorruptedTokens:
    """Choose tokens to predict and hide most of them (Devlin et al. 2019, 3.1 and appendix A.1).

    Each row has `n_chosen` tokens chosen, as in BERT's own code, so that every batch costs the
    same; a row with fewer that are not special has all of those chosen. Of the chosen, a share
    P_MASK becomes `mask_id`, a share P_RANDOM a random id that is not special, and the rest stays.

    A pure function of its arguments and the generator's state. It always draws three tensors of
    (B, S), so what it does at one position does not depend on the ids at another.

    Args:
        input_ids: (B, S) int64 ids below n_vocab.
        special_ids: never chosen and never put in (separators, end of text), like the mask.

    Raises:
        ValueError: a special id is not below n_vocab, or every id is special.
    """
    special = sorted({mask_id, *special_ids})
    if special[0] < 0 or special[-1] >= n_vocab or len(special) == n_vocab:
        raise ValueError(
            f"mask and special ids {special}: expected ids from 0 to {n_vocab - 1} (n_vocab - 1), "
            "and at least one more that is not special"
        )
    device = input_ids.device
    is_special = torch.zeros(n_vocab, dtype=torch.bool)
    is_special[special] = True
    ordinary = (~is_special).nonzero().squeeze(1).to(device)
    shape, source = input_ids.shape, generator.device
    draw = torch.rand(shape, generator=generator, device=source).to(device)
    fate = torch.rand(shape, generator=generator, device=source).to(device)
    which = torch.randint(len(ordinary), shape, generator=generator, device=source).to(device)

    eligible = ~is_special.to(device)[input_ids]
    draw = draw.masked_fill(~eligible, torch.inf)
    nearest = draw.topk(min(n_chosen, draw.shape[1]), dim=1, largest=False).indices
    chosen = torch.zeros_like(eligible).scatter_(1, nearest, value=True) & eligible
    inputs = input_ids.masked_fill(chosen & (fate < P_MASK), mask_id)
    randomised = chosen & (fate >= P_MASK) & (fate < P_MASK + P_RANDOM)
    return CorruptedTokens(
        torch.where(randomised, ordinary[which], inputs), chosen, input_ids[chosen]
    )
