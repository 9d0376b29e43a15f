"""A report as a list of blocks, and its two writings: HTML and Markdown.

Every text of a block is plain text: the writers escape it, so that no name, reason or setting
from a configuration can become markup.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from reports.style.theme import PALETTE, Chart, NoChart


@dataclass(frozen=True)
class Heading:
    """A section's question."""

    text: str


@dataclass(frozen=True)
class Text:
    """A paragraph; `lead` is its first words, set in bold."""

    text: str
    lead: str = ""


@dataclass(frozen=True)
class Bullets:
    """A list of remarks."""

    items: list[Text]


@dataclass(frozen=True)
class Card:
    """One large figure of the head."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Cards:
    """The head: few large figures in a row, under a caption."""

    caption: str
    cards: list[Card]


@dataclass(frozen=True)
class Table:
    """A table; the first column names the row. `strong` marks cells (row, column) in bold."""

    head: list[str]
    rows: list[list[str]]
    strong: frozenset[tuple[int, int]] = field(default_factory=frozenset)
    caption: str = ""
    wide_text: bool = False
    """Whether cells hold sentences, which may break, rather than figures."""


@dataclass(frozen=True)
class Code:
    """Text to copy, folded under a summary."""

    summary: str
    text: str


@dataclass(frozen=True)
class Picture:
    """A figure as SVG text, or why there is none."""

    chart: Chart | NoChart
    svg: str = ""

    @property
    def source(self) -> str:
        """The drawing as a data URI."""
        return "data:image/svg+xml;base64," + base64.b64encode(self.svg.encode()).decode()


Block = Heading | Text | Bullets | Cards | Table | Code | Picture


@dataclass(frozen=True)
class Document:
    """A whole report."""

    title: str
    subtitle: str
    blocks: list[Block]


def clean(text: object) -> str:
    """Text that any file can hold: no control characters, no broken surrogates."""
    line = str(text)
    if line.isprintable():  # nearly always
        return line
    line = line.encode("utf-8", "replace").decode("utf-8")
    return "".join(
        c if c.isprintable() or c in "\n " else "\N{REPLACEMENT CHARACTER}" for c in line
    )


# ── HTML ─────────────────────────────────────────────────────────────────────────────────────


def to_html(document: Document) -> str:
    """The report as one page that needs nothing else and runs nothing."""
    page = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=lambda value: value if isinstance(value, Markup) else clean(value),
    )
    return page.get_template("page.html").render(
        document=document, palette=PALETTE, kind=lambda block: type(block).__name__
    )


# ── Markdown ─────────────────────────────────────────────────────────────────────────────────

_MARKDOWN_SPECIAL = re.compile(r"([\\`*\[\]#|~$!])|(?<![A-Za-z0-9])(_)|(_)(?![A-Za-z0-9])")


def to_markdown(document: Document, picture_path: Callable[[str], str]) -> str:
    """The same report as GitHub's Markdown; `picture_path` says where a figure's PNG lies."""
    parts = [f"# {_m(document.title)}", _m(document.subtitle)]
    parts += [_markdown_block(block, picture_path) for block in document.blocks]
    return "\n\n".join(parts) + "\n"


def _m(text: object) -> str:
    """One line of Markdown that shows `text` and nothing else."""
    line = " ".join(clean(text).split())
    line = _MARKDOWN_SPECIAL.sub(lambda match: "\\" + match.group(), line)
    return line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _markdown_block(block: Block, picture_path: Callable[[str], str]) -> str:
    match block:
        case Heading(text):
            return f"## {_m(text)}"
        case Text():
            return _markdown_text(block)
        case Bullets(items):
            return "\n".join(f"- {_markdown_text(item)}" for item in items)
        case Cards(caption, cards):
            rows = [[card.label, card.value, card.note] for card in cards]
            return f"**{_m(caption)}**\n\n" + _markdown_table(Table(["", "", ""], rows))
        case Table():
            return _markdown_table(block)
        case Code(summary, text):
            text = clean(text).rstrip("\n")
            longest = max((len(run) for run in re.findall("`+", text)), default=0)
            fence = "`" * max(3, longest + 1)
            return f"{_m(summary)}:\n\n{fence}yaml\n{text}\n{fence}"
        case Picture(chart):
            if isinstance(chart, NoChart):
                return f"*{_m(chart.why)}*"
            return f"![{_m(chart.title)}]({picture_path(chart.name)})"


def _markdown_text(text: Text) -> str:
    return (f"**{_m(text.lead)}** " if text.lead else "") + _m(text.text)


def _markdown_table(table: Table) -> str:
    def line(cells: Iterable[str]) -> str:
        return "| " + " | ".join(cells) + " |"

    other = "---" if table.wide_text else "---:"
    lines = [line(_m(cell) for cell in table.head)]
    lines.append(line(["---"] + [other] * (len(table.head) - 1)))
    lines += [
        line(
            f"**{_m(cell)}**" if (index, column) in table.strong and cell else _m(cell)
            for column, cell in enumerate(row)
        )
        for index, row in enumerate(table.rows)
    ]
    caption = f"{_m(table.caption)}\n\n" if table.caption else ""
    return caption + "\n".join(lines)
