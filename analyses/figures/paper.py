"""What all figures for papers share: 7 pt text that stays text, file formats, reproducible bytes, axes and legends."""

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

DPI = 288  # during layout: four pixels per point
FORMATS = ("pdf", "svg", "png")
FONT, SIZE = "DejaVu Sans", 7.0  # comes with matplotlib, so it is the same on every machine
STYLE: dict[str, Any] = {
    "font.family": FONT,
    "font.size": SIZE,
    "pdf.fonttype": 42,  # publishers reject Type 3 fonts
    "svg.fonttype": "none",  # keeps text searchable and editable
    "svg.hashsalt": "sparselens",
    "axes.unicode_minus": True,
}


class Drawing(ABC):
    """Base of figures for papers; subclasses implement `draw`."""

    @abstractmethod
    def draw(self, width: float = 6.75) -> Any:
        """The matplotlib Figure, `width` inches wide."""

    def save(self, path: str | Path, width: float = 6.75, dpi: int = 300) -> Path:
        """Write a .pdf, .svg or .png, `width` inches wide, either completely or not at all."""
        path = Path(path)
        form = form_of(path)
        with style():
            return write_file(path, encoded(self.draw(width), form, dpi))

    def _repr_png_(self) -> bytes:
        with style():
            return encoded(self.draw(), "png", 160)


@contextmanager
def style() -> Iterator[None]:
    """Context in which figures have our style; the user's matplotlib settings have no effect and are not changed."""
    from matplotlib import style as styles

    with styles.context(["default", STYLE]):
        yield


def form_of(path: Path) -> str:
    """The file format, from the file name.

    Raises:
        ValueError: the format is not supported.
    """
    if path.suffix[1:] not in FORMATS:
        raise ValueError(f"cannot draw {path.name}: want a name that ends in .pdf, .svg or .png (for pages: save_html)")
    return path.suffix[1:]


def encoded(figure: Any, form: str, dpi: int) -> bytes:
    """The file content of a matplotlib figure; the same figure gives the same bytes."""
    undated: dict[str, Any] = {"png": {}, "pdf": {"CreationDate": None}, "svg": {"Date": None}}
    file = io.BytesIO()
    figure.savefig(file, format=form, dpi=dpi, metadata=undated[form])
    return file.getvalue()


def literal(text: str) -> str:
    """The text on one line, with characters escaped that are unprintable or missing in the font."""
    return "".join(c if c.isprintable() and ord(c) in _glyphs() else _escape(c) for c in text)


def text_size(axes: Any, text: str) -> tuple[float, float]:
    """Width and height of a text in pixels."""
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
    """A matplotlib Figure with a canvas that can measure text."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI)
    FigureCanvasAgg(figure)
    return figure


def drawing_area(width: float, height: float) -> Any:
    """The axes of a new matplotlib Figure of that many points: coordinates are points, y downward, nothing is drawn."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width / 72, height / 72))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))
    axes.set_axis_off()
    return axes


def plain_axes(axes: Any) -> None:
    """Give axes thin lines on the left and at the bottom, with small ticks."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["bottom", "left"]].set(color=QUIET, linewidth=0.6)
    axes.tick_params(color=QUIET, labelcolor=INK, width=0.6, length=2.5, pad=2, labelsize=SIZE)
    axes.tick_params(which="minor", color=QUIET, width=0.4, length=1.5)


def write_letter(axes: Any, letter: str, above: float) -> None:
    """Write a panel's letter, `above` points over its top left corner."""
    axes.annotate(
        letter, (0, 1), (-7, above), "axes fraction", "offset points", ha="right", va="baseline", weight="bold",
        gid="letter", size=SIZE, color=INK, parse_math=False,
    )  # fmt: skip


def legend_above(figure: Any, handles: Sequence[Any], names: Sequence[str], **spacing: float) -> float:
    """Draw a legend above the panels, in as few rows as possible; returns its height in inches."""
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
    """Arrange the panels in the space below the legend."""
    figure.set_size_inches(width, height)
    figure.set_layout_engine("constrained", w_pad=0.03, h_pad=0.03, wspace=0.03, rect=(0, 0, 1, 1 - legend / height))
    figure.get_layout_engine().execute(figure)
    figure.set_layout_engine("none")
