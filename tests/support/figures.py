"""What a drawn figure shows: its texts, and that they can be read."""

from __future__ import annotations

import itertools

from matplotlib.figure import Figure
from matplotlib.text import Text

from reports.style import theme
from reports.style.theme import Chart


def visible_texts(figure: Figure) -> list[Text]:
    """The texts that a figure really draws: matplotlib keeps ticks outside the axes as well."""
    texts = [*figure.texts, *(t for legend in figure.legends for t in legend.get_texts())]
    for axes in figure.axes:
        texts += [*axes.texts, axes.title, axes._right_title, axes.xaxis.label, axes.yaxis.label]
        for axis in (axes.xaxis, axes.yaxis):
            texts += [tick.label1 for tick in axis._update_ticks()]
    if figure._suptitle is not None and figure._suptitle not in texts:
        texts.append(figure._suptitle)
    return [t for t in texts if isinstance(t, Text) and t.get_visible() and t.get_text().strip()]


def assert_texts_apart(chart: Chart) -> None:
    """No text of a chart overlaps another or leaves the figure."""
    with theme.drawn(chart) as figure:
        figure.draw_without_rendering()  # places ticks and titles
        renderer = figure.canvas.get_renderer()
        boxes = [(t.get_text(), t.get_window_extent(renderer)) for t in visible_texts(figure)]
        frame = figure.bbox.padded(1.5)
    assert len(boxes) >= 5
    for text, box in boxes:
        assert frame.x0 <= box.x0, (chart.name, text)
        assert box.x1 <= frame.x1, (chart.name, text)
        assert frame.y0 <= box.y0, (chart.name, text)
        assert box.y1 <= frame.y1, (chart.name, text)
    for (one, a), (other, b) in itertools.combinations(boxes, 2):
        apart = a.x1 <= b.x0 + 1 or b.x1 <= a.x0 + 1 or a.y1 <= b.y0 + 1 or b.y1 <= a.y0 + 1
        assert apart, (chart.name, one, other)
