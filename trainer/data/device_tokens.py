"""Training tokens on a GPU, as they lie on disk: two bytes each, windows gathered there.

A step then needs nothing from the CPU but where its windows begin.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from trainer.data.shards.tokens import TokenArray
from trainer.memory import LARGEST_TEXT_ON_DEVICE_BYTES

LARGEST_SHARE = 0.25
"""Of the device's free memory, that the text may take."""


class DeviceTokens:
    """All ids of a `TokenArray` on a device."""

    def __init__(self, tokens: TokenArray, device: torch.device) -> None:
        """Copy the ids, part by part."""
        self.ids = torch.empty(len(tokens), dtype=torch.int16, device=device)
        at = 0
        for part in tokens.parts:
            piece = np.array(part)  # off the mapped file
            self.ids[at : at + len(piece)] = torch.from_numpy(piece.view(np.int16))
            at += len(piece)

    def windows(self, starts: Tensor, length: int) -> Tensor:
        """What `TokenArray.gather` gives, (B, length) int64, from (B,) int64 on the device.

        Each window has to lie within the text.
        """
        places = starts[:, None] + torch.arange(length, device=starts.device)
        return self.ids[places].long() & 0xFFFF  # int16 has a sign, ids have none


def tokens_on_device(tokens: TokenArray, device: torch.device) -> DeviceTokens | None:
    """The text on a device; None where it would take too much of its memory.

    The next run on the same text finds it there; it goes with the array.
    """
    there = tokens.on_device
    if isinstance(there, DeviceTokens) and there.ids.device == device:
        return there
    n_bytes = 2 * len(tokens)
    if n_bytes > LARGEST_TEXT_ON_DEVICE_BYTES:
        return None
    if device.type == "cuda" and n_bytes > LARGEST_SHARE * torch.cuda.mem_get_info(device)[0]:
        return None
    tokens.on_device = there = DeviceTokens(tokens, device)
    return there
