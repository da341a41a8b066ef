"""Checks that a drawing is legible: no overlapping texts, none outside the page, none too small."""

from itertools import combinations
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

TOUCH = 0.25  # points by which boxes may overlap, or leave the page


def shown_texts(figure: Figure) -> list[tuple[str, Any]]:
    """All visible texts with their extents in pixels: titles, labels, ticks, legends, notes."""
    figure.draw_without_rendering()  # ticks are created when drawn
    renderer = FigureCanvasAgg(figure).get_renderer()
    texts = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]
    shown = [(text.get_text(), text.get_window_extent(renderer)) for text in texts if _is_in_view(text)]
    return [(text, box) for text, box in shown if box.width and box.height]


def _is_in_view(text: Text) -> bool:
    """Whether a label is drawn; matplotlib keeps labels of ticks beyond the ends of an axis without drawing them."""
    axes = text.axes
    for axis in (axes.xaxis, axes.yaxis) if axes is not None and hasattr(axes, "xaxis") else ():
        for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
            if text in (tick.label1, tick.label2):
                low, high = sorted(axis.get_view_interval())
                own = tick.label1 if text is tick.label1 else tick.label2
                return own.get_visible() and low <= tick.get_loc() <= high
    return True


def assert_legible(figure: Figure, smallest: float = 5.0) -> list[str]:
    """Assert that a figure is legible; returns its texts."""
    touch = TOUCH * figure.dpi / 72
    shown = shown_texts(figure)
    width, height = figure.get_size_inches() * figure.dpi
    for text, box in shown:
        inside = box.x0 > -touch and box.y0 > -touch and box.x1 < width + touch and box.y1 < height + touch
        assert inside, f"{text!r} leaves the paper: {box} of {width:.0f} x {height:.0f}"
    for (text, box), (other, its) in combinations(shown, 2):
        wide = min(box.x1, its.x1) - max(box.x0, its.x0)
        high = min(box.y1, its.y1) - max(box.y0, its.y0)
        assert wide < touch or high < touch, f"{text!r} and {other!r} overlap by {wide:.1f} x {high:.1f} pixels"
    sizes = [text.get_fontsize() for text in figure.findobj(Text) if text.get_text().strip()]
    assert min(sizes) >= smallest
    return [text for text, _ in shown]
