"""The look of the figures: palette, sizes, axes, and rendering to SVG and PNG.

Nothing here uses pyplot or leaves matplotlib's global settings changed. Equal input gives equal
bytes.
"""

from __future__ import annotations

import contextlib
import io
import math
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import matplotlib as mpl
import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patheffects import withStroke

PALETTE = {
    "paper": "#ffffff",
    "ink": "#1f2933",
    "muted": "#56616d",
    "grid": "#e4e8ec",
    "other": "#8793a0",
    "best": "#0072b2",
    "good": "#3d9bd4",
    "promoted": "#d55e00",
    "green": "#009e73",
    "amber": "#b97a00",
    "purple": "#9b5fa8",
    "brown": "#7a5c43",
    "cyan": "#2a9d9a",
}
"""Role → colour on paper. Hues after Okabe and Ito (2008), safe for colour-blind readers; where
several appear together they differ in marker or weight too."""

PAPER, INK, MUTED, GRID = (PALETTE[role] for role in ("paper", "ink", "muted", "grid"))
OTHER, BEST, GOOD, PROMOTED = (PALETTE[role] for role in ("other", "best", "good", "promoted"))

_WIDTH_INCHES = 7.4
_TITLE_POINTS = 11.0
_TITLE_EMS = 0.6
"""Width of a character of a title over the font's size: a little above the mean, so that any line
fits."""
PNG_DPI = 160
RASTER_DPI = 120
"""Resolution of what is drawn as pixels inside an SVG."""
RASTER_ABOVE = 400
"""Marks of one kind above which they are drawn as pixels inside the SVG."""

_SETTINGS: dict[str, Any] = {
    "font.family": ["DejaVu Sans"],
    "font.size": 9.5,
    "axes.titlesize": 9.5,
    "axes.labelsize": 9.5,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": MUTED,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.unicode_minus": False,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "text.color": INK,
    "text.parse_math": False,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "legend.handletextpad": 0.5,
    "legend.columnspacing": 1.4,
    "legend.borderaxespad": 0.2,
    "lines.solid_capstyle": "round",
    "figure.facecolor": PAPER,
    "svg.fonttype": "path",
    "svg.hashsalt": "budgetsweep",
    "path.simplify": True,
}


@dataclass(frozen=True)
class Chart:
    """A figure of the report: what it is called, what it says, how it is drawn."""

    name: str
    """File name without ending."""
    title: str
    """The finding, in one line."""
    alt: str
    """What is drawn, for those who cannot see it."""
    draw: Callable[[Figure], None]
    height_inches: float = 4.0


@dataclass(frozen=True)
class NoChart:
    """A figure that has nothing to show, and why, in words."""

    name: str
    why: str


@contextlib.contextmanager
def drawn(chart: Chart) -> Iterator[Figure]:
    """The chart as a matplotlib figure, with our settings in force."""
    with mpl.style.context(["default", _SETTINGS]):
        figure = Figure(figsize=(_WIDTH_INCHES, chart.height_inches), dpi=PNG_DPI)
        FigureCanvasAgg(figure)
        width = int(72 * _WIDTH_INCHES / _TITLE_POINTS / _TITLE_EMS)
        title = printable(chart.title, 150)
        # Lines of about one length, so that no word stands alone.
        even = len(title) // math.ceil(len(title) / width) + 8
        lines = textwrap.fill(title, min(width, even))
        figure.suptitle(lines, x=0.004, ha="left", fontsize=_TITLE_POINTS, weight="bold")
        chart.draw(figure)
        # Laid out once, for every format; as the figure's own engine it would be at each drawing.
        ConstrainedLayoutEngine(w_pad=0.07, h_pad=0.05).execute(figure)
        yield figure


def svg_and_png(chart: Chart) -> tuple[str, bytes]:
    """The chart as SVG text and as PNG."""
    with drawn(chart) as figure:
        text = io.StringIO()
        figure.set_dpi(RASTER_DPI)
        # Figure.savefig would draw everything once more, to lay it out again.
        FigureCanvasSVG(figure).print_svg(  # type: ignore[no-untyped-call]
            text, metadata={"Date": None, "Creator": None, "Format": None}
        )
        figure.set_dpi(PNG_DPI)
        pixels = io.BytesIO()
        FigureCanvasAgg(figure).print_png(  # type: ignore[no-untyped-call]
            pixels, metadata={"Software": None}
        )
    return text.getvalue(), pixels.getvalue()


@cache
def _glyphs() -> frozenset[int]:
    return frozenset(get_font(findfont(FontProperties(family="DejaVu Sans"))).get_charmap())


def printable(text: object, most: int | None = None) -> str:
    """Text that the figures' font can show: one line, unknown characters as `?`, cut to `most`."""
    line = " ".join(str(text).split())
    shown = "".join(c if ord(c) in _glyphs() and c.isprintable() else "?" for c in line)
    if most is not None and len(shown) > most:
        return shown[: most - 1] + "…"
    return shown


def halo(width: float = 2.5) -> list[Any]:
    """Path effect that keeps text readable over lines."""
    return [withStroke(linewidth=width, foreground=PAPER)]


def legend_below(figure: Figure, handles: list[Any]) -> None:
    """A key under the axes, where it covers nothing."""
    if handles:
        columns = 5 if sum(len(str(handle.get_label())) + 6 for handle in handles) < 105 else 4
        figure.legend(handles=handles, loc="outside lower left", ncols=columns)


def remark(axes: Axes, text: str) -> None:
    """A small remark above the axes, at the right."""
    axes.set_title(text, loc="right", fontsize=9, color=MUTED, pad=5)
