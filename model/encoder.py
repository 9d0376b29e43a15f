"""Encoder-only language model, and its training by masked-token prediction (BERT's objective).

Each position sees all content, before and after it. So there is no next token to predict; instead
some tokens are hidden from the model, and it is trained to name them (Devlin et al. 2019, 3.1).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from model.transformer import Transformer, require_same_shape


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
    attention_mask: Tensor | None,
    n_vocab: int,
    mask_id: int,
    *,
    generator: torch.Generator,
    special_ids: Iterable[int] = (),
    p_chosen: float = 0.15,
    p_mask: float = 0.8,
    p_random: float = 0.1,
    n_chosen: int | None = None,
) -> CorruptedTokens:
    """Choose tokens to predict and hide most of them (Devlin et al. 2019, 3.1 and appendix A.1).

    Each content token that is not special is chosen with probability p_chosen, independently of the
    others. If chance chooses none, the one that came nearest is taken, so that a batch with such a
    token always has a loss. Of the chosen, a share p_mask becomes `mask_id`, a share p_random a
    random id that is not special (possibly the same as before), and the rest stays. With n_chosen
    each row has that many chosen, as in BERT's own code, so that every batch costs the same.

    A pure function of its arguments and the generator's state. It always draws three tensors of
    (B, S), so what it does at one position does not depend on the ids at another.

    Args:
        input_ids: (B, S) int64 ids.
        attention_mask: (B, S), 1 for content and 0 for padding; None: all content.
        n_vocab: token ids V.
        mask_id: the id that hides a token; special itself.
        generator: where the draws come from, on any device.
        special_ids: ids never chosen and never put in as random ones (separators, end of text).
        p_chosen: probability that a token is to be predicted.
        p_mask: share of the chosen that becomes mask_id.
        p_random: share of the chosen that becomes a random id.
        n_chosen: tokens to choose in each row, instead of p_chosen; a row with fewer that are
            eligible has all of them chosen.

    Raises:
        ValueError: a probability is out of range, an id is not below n_vocab, every id is special,
            or the mask's shape is not that of the ids.
    """
    special = sorted({mask_id, *special_ids})
    if not (0 < p_chosen <= 1 and p_mask >= 0 and p_random >= 0 and p_mask + p_random <= 1):
        raise ValueError(
            f"p_chosen = {p_chosen}, p_mask = {p_mask}, p_random = {p_random}: expected "
            "probabilities, the first above 0, the last two adding up to at most 1"
        )
    if special[0] < 0 or special[-1] >= n_vocab or len(special) == n_vocab:
        raise ValueError(
            f"mask and special ids {special}: expected ids from 0 to {n_vocab - 1} (n_vocab - 1), "
            "and at least one more that is not special"
        )
    if attention_mask is not None:
        require_same_shape(input_ids, attention_mask)
    device = input_ids.device
    is_special = torch.zeros(n_vocab, dtype=torch.bool)
    is_special[special] = True
    ordinary = (~is_special).nonzero().squeeze(1).to(device)
    shape, source = input_ids.shape, generator.device
    draw = torch.rand(shape, generator=generator, device=source).to(device)
    fate = torch.rand(shape, generator=generator, device=source).to(device)
    which = torch.randint(len(ordinary), shape, generator=generator, device=source).to(device)

    eligible = ~is_special.to(device)[input_ids]
    if attention_mask is not None:
        eligible &= attention_mask != 0
    draw = draw.masked_fill(~eligible, torch.inf)
    if n_chosen is None:
        chosen = draw < p_chosen
    else:
        nearest = draw.topk(min(n_chosen, draw.shape[1]), dim=1, largest=False).indices
        chosen = torch.zeros_like(eligible).scatter_(1, nearest, value=True) & eligible
    if not chosen.any():
        chosen = (draw == draw.min()) & eligible
    inputs = input_ids.masked_fill(chosen & (fate < p_mask), mask_id)
    randomised = chosen & (fate >= p_mask) & (fate < p_mask + p_random)
    return CorruptedTokens(
        torch.where(randomised, ordinary[which], inputs), chosen, input_ids[chosen]
    )
