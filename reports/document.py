"""A report as a list of blocks, and its two writings: HTML and Markdown.

Every text of a block is plain text: the writers escape it, so that no name, reason or setting
from a configuration can become markup.
"""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from reports.style.theme import Chart, NoChart


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
    """A figure in the renditions that a page needs, or why there is none."""

    chart: Chart | NoChart
    renditions: dict[str, str] = field(default_factory=dict)
    """SVG text by rendition: wide, wide-dark, narrow, narrow-dark."""


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

_STYLE = """
:root { color-scheme: light dark; --paper:#ffffff; --ink:#1f2933; --muted:#56616d; --line:#d9dee3;
  --tint:#f4f6f8; --best:#0072b2; }
@media (prefers-color-scheme: dark) { :root { --paper:#15191e; --ink:#e7eaee; --muted:#a9b3be;
  --line:#333c46; --tint:#1d232a; --best:#5cb8f5; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--paper); color: var(--ink); overflow-wrap: break-word;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 56rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .25rem; }
h2 { font-size: 1.25rem; line-height: 1.3; margin: 3rem 0 .75rem; padding-top: 1rem;
  border-top: 1px solid var(--line); }
p, ul, h1 { max-width: 46rem; }
p, ul { margin: .75rem 0; }
ul { padding-left: 1.2rem; }
li { margin: .5rem 0; }
.sub, figcaption, caption, .card small, .none { color: var(--muted); }
.sub { margin: 0 0 1.5rem; }
.caption { margin: 1.25rem 0 .5rem; font-weight: 600; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: .6rem; }
.card { background: var(--tint); border-radius: 8px; padding: .7rem .85rem; }
.card b { display: block; font-size: 1.55rem; line-height: 1.25; color: var(--best);
  font-variant-numeric: tabular-nums; }
.card span, .card small { display: block; font-size: .85rem; line-height: 1.35; }
figure { margin: 1.5rem 0; max-width: 48rem; }
figure img { display: block; width: 100%; max-width: 100%; height: auto; }
.none { background: var(--tint); border-radius: 8px; padding: .8rem 1rem; }
.scroll { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: separate; border-spacing: 0; font-size: .9rem;
  font-variant-numeric: tabular-nums; }
caption { text-align: left; padding-bottom: .35rem; }
th, td { padding: .32rem .6rem; border-bottom: 1px solid var(--line); text-align: right;
  vertical-align: top; white-space: nowrap; }
th:first-child { text-align: left; padding-left: 0; }
tbody th { font-weight: 400; position: sticky; left: 0; background: var(--paper);
  white-space: normal; min-width: 6rem; max-width: 15rem; }
thead th { font-weight: 600; color: var(--muted); vertical-align: bottom; }
td strong { color: var(--best); }
.words th, .words td { text-align: left; }
.words td:last-child { white-space: normal; min-width: 17rem; overflow-wrap: anywhere; }
@media (max-width: 600px) { .words td:last-child { min-width: 13rem; } }
details { margin: 1rem 0; }
summary { cursor: pointer; color: var(--muted); }
pre { overflow-x: auto; background: var(--tint); border-radius: 8px; padding: .8rem 1rem;
  font: .82rem/1.45 ui-monospace, "DejaVu Sans Mono", monospace; }
@media print { details > pre { white-space: pre-wrap; } h2 { break-after: avoid; }
  figure, .cards { break-inside: avoid; } }
"""


def to_html(document: Document) -> str:
    """One self-contained page; nothing is fetched and nothing is run."""
    body = "\n".join(_html_block(block) for block in document.blocks)
    title, subtitle = _h(document.title), _h(document.subtitle)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{title}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
        f'<h1>{title}</h1>\n<p class="sub">{subtitle}</p>\n{body}\n</main>\n</body>\n</html>\n'
    )


def _h(text: object) -> str:
    return html.escape(clean(text), quote=True)


def _html_block(block: Block) -> str:
    match block:
        case Heading(text):
            return f"<h2>{_h(text)}</h2>"
        case Text():
            return f"<p>{_html_text(block)}</p>"
        case Bullets(items):
            return "<ul>\n" + "\n".join(f"<li>{_html_text(i)}</li>" for i in items) + "\n</ul>"
        case Cards():
            return _html_cards(block)
        case Table():
            return _html_table(block)
        case Code(summary, text):
            return f"<details><summary>{_h(summary)}</summary>\n<pre>{_h(text)}</pre></details>"
        case Picture():
            return _html_picture(block)


def _html_text(text: Text) -> str:
    lead = f"<strong>{_h(text.lead)}</strong> " if text.lead else ""
    return lead + _h(text.text)


def _html_cards(block: Cards) -> str:
    cards = "\n".join(
        f'<div class="card"><span>{_h(card.label)}</span><b>{_h(card.value)}</b>'
        f"<small>{_h(card.note)}</small></div>"
        for card in block.cards
    )
    return f'<p class="caption">{_h(block.caption)}</p>\n<div class="cards">\n{cards}\n</div>'


def _html_table(table: Table) -> str:
    head = "".join(f'<th scope="col">{_h(cell)}</th>' for cell in table.head)
    rows = "\n".join(
        "<tr>"
        + "".join(
            _html_cell(cell, column, strong=(index, column) in table.strong)
            for column, cell in enumerate(row)
        )
        + "</tr>"
        for index, row in enumerate(table.rows)
    )
    caption = f"<caption>{_h(table.caption)}</caption>" if table.caption else ""
    words = ' class="words"' if table.wide_text else ""
    return (
        f'<div class="scroll" tabindex="0"><table{words}>{caption}\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody></table></div>"
    )


def _html_cell(cell: str, column: int, *, strong: bool) -> str:
    text = f"<strong>{_h(cell)}</strong>" if strong else _h(cell)
    return f'<th scope="row">{text}</th>' if column == 0 else f"<td>{text}</td>"


def _html_picture(picture: Picture) -> str:
    if isinstance(picture.chart, NoChart):
        return f'<p class="none">{_h(picture.chart.why)}</p>'
    source = {name: _data_uri(svg) for name, svg in picture.renditions.items()}
    dark, small = "(prefers-color-scheme: dark)", "(max-width: 600px)"
    sources = "\n".join(
        f'<source media="{media}" srcset="{source[name]}">'
        for media, name in (
            (f"{small} and {dark}", "narrow-dark"),
            (small, "narrow"),
            (dark, "wide-dark"),
        )
    )
    alt = _h(f"{picture.chart.title}. {picture.chart.alt}")
    return (
        f'<figure id="{_h(picture.chart.name)}"><picture>\n{sources}\n'
        f'<img src="{source["wide"]}" alt="{alt}"></picture></figure>'
    )


def _data_uri(svg: str) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()


# ── Markdown ─────────────────────────────────────────────────────────────────────────────────

_MARKDOWN_SPECIAL = re.compile(r"([\\`*\[\]#|~$!])|(?<![A-Za-z0-9])(_)|(_)(?![A-Za-z0-9])")


def to_markdown(document: Document, picture_path: Callable[[str], str]) -> str:
    """The same report as Markdown (GitHub's dialect).

    Args:
        document: the report.
        picture_path: where the PNG of a figure lies, by the figure's name.
    """
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
