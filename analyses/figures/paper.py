"""What all figures for papers share: 7 pt type that stays text, three file formats, reproducible bytes, one legend."""

import io
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from math import ceil
from pathlib import Path
from typing import Any

from sparselens.analyses.figures.palette import INK, QUIET
from sparselens.files.whole import write_file

DPI = 288  # while a figure is laid out: four pixels per point
FORMATS = ("pdf", "svg", "png")
FONT, SIZE = "DejaVu Sans", 7.0  # comes with matplotlib, so that every machine draws the same
STYLE: dict[str, Any] = {
    "font.family": FONT,
    "font.size": SIZE,
    "pdf.fonttype": 42,  # publishers refuse fonts of type 3
    "svg.fonttype": "none",  # text that can be searched and edited
    "svg.hashsalt": "sparselens",
    "axes.unicode_minus": True,
}


class Drawing(ABC):
    """A figure for a paper, by its `draw`."""

    @abstractmethod
    def draw(self, width: float = 6.75) -> Any:
        """The matplotlib Figure, of `width` inches."""

    def save(self, path: str | Path, width: float = 6.75, dpi: int = 300) -> Path:
        """Write a .pdf, .svg or .png of `width` inches, completely or not at all."""
        path = Path(path)
        form = form_of(path)
        with style():
            return write_file(path, encoded(self.draw(width), form, dpi))

    def _repr_png_(self) -> bytes:
        with style():
            return encoded(self.draw(), "png", 160)


@contextmanager
def style() -> Iterator[None]:
    """Inside, figures are drawn in one style; a user's own matplotlib settings neither matter nor change."""
    from matplotlib import style as styles

    with styles.context(["default", STYLE]):
        yield


def form_of(path: Path) -> str:
    """The format of a file by its name.

    Raises:
        ValueError: figures are not drawn in this format.
    """
    if path.suffix[1:] not in FORMATS:
        raise ValueError(f"cannot draw a {path.name}: want a name that ends in .pdf, .svg or .png (pages: save_html)")
    return path.suffix[1:]


def encoded(figure: Any, form: str, dpi: int) -> bytes:
    """The file of a matplotlib figure; the same figure gives the same bytes."""
    undated: dict[str, Any] = {"png": {}, "pdf": {"CreationDate": None}, "svg": {"Date": None}}
    file = io.BytesIO()
    figure.savefig(file, format=form, dpi=dpi, metadata=undated[form])
    return file.getvalue()


def literal(text: str) -> str:
    """The text on one line, with an escape for every character that cannot be seen or that the font lacks."""
    return "".join(c if c.isprintable() and ord(c) in _glyphs() else _escape(c) for c in text)


def text_size(axes: Any, text: str) -> tuple[float, float]:
    """Width and height of a text, in pixels of its figure."""
    from matplotlib.text import Text

    shown = Text(0, 0, text, size=SIZE, parse_math=False, figure=axes.get_figure())
    box = shown.get_window_extent(axes.get_figure().canvas.get_renderer())
    return box.width, box.height


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode()


@cache
def _glyphs() -> frozenset[int]:
    from matplotlib.font_manager import FontProperties, findfont, get_font

    return frozenset(get_font(findfont(FontProperties(family=FONT))).get_charmap())


def measured_figure(width: float, height: float) -> Any:
    """A matplotlib Figure that measures text."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI)
    FigureCanvasAgg(figure)
    return figure


def plain_axes(axes: Any) -> None:
    """Thin, quiet lines to the left and below, with small ticks."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["bottom", "left"]].set(color=QUIET, linewidth=0.6)
    axes.tick_params(color=QUIET, labelcolor=INK, width=0.6, length=2.5, pad=2, labelsize=SIZE)
    axes.tick_params(which="minor", color=QUIET, width=0.4, length=1.5)


def write_letter(axes: Any, letter: str, above: float) -> None:
    """The letter of a panel, so many points above it."""
    axes.annotate(
        letter, (0, 1), (-7, above), "axes fraction", "offset points", ha="right", va="baseline", weight="bold",
        gid="letter", size=SIZE, color=INK, parse_math=False,
    )  # fmt: skip


def legend_above(figure: Any, handles: Sequence[Any], names: Sequence[str], **spacing: float) -> float:
    """A legend in as few rows as fit above the panels; returns its height in inches."""
    renderer, width = figure.canvas.get_renderer(), DPI * figure.get_size_inches()[0]
    rows, fits = 0, False
    while not fits:
        rows += 1
        legend = figure.legend(
            handles, ["x"] * len(handles), loc="upper center", bbox_to_anchor=(0.5, 1), frameon=False, fontsize=SIZE,
            ncols=ceil(len(handles) / rows), handletextpad=0.5, borderpad=0.2, borderaxespad=0.2, **spacing,
        )  # fmt: skip
        legend.set_in_layout(False)
        for text, name in zip(legend.get_texts(), names, strict=True):
            text.set(text=name, parse_math=False, color=INK)
        box = legend.get_window_extent(renderer)
        fits = box.width < width - 0.05 * DPI or rows >= len(handles)
        if not fits:
            legend.remove()
    return box.height / DPI + 0.04  # pyright: ignore[reportPossiblyUnboundVariable]


def fit_layout(figure: Any, width: float, height: float, legend: float) -> None:
    """Give the panels what the legend leaves of the figure."""
    figure.set_size_inches(width, height)
    figure.set_layout_engine("constrained", w_pad=0.03, h_pad=0.03, wspace=0.03, rect=(0, 0, 1, 1 - legend / height))
    figure.get_layout_engine().execute(figure)
    figure.set_layout_engine("none")
