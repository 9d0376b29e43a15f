"""The sentences of a report's blocks."""

from __future__ import annotations

from collections.abc import Sequence

from reports.document import Block, Text


def sentences(blocks: Sequence[Block]) -> str:
    """All sentences of some blocks, a line a paragraph; tables are left out."""
    items = [item for block in blocks for item in getattr(block, "items", [block])]
    return "\n".join(f"{item.lead} {item.text}" for item in items if isinstance(item, Text))
