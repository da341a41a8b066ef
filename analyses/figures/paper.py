"""What all drawings for paper share: 7 pt type that stays text, three file formats, and bytes that come out alike."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

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


@contextmanager
def style() -> Iterator[None]:
    """Draw within this: a user's own matplotlib settings neither matter nor change."""
    from matplotlib import style as styles

    with styles.context(["default", STYLE]):
        yield


def form_of(path: Path) -> str:
    """The format that the name of a file asks for.

    Raises:
        ValueError: matplotlib is not asked to draw such files.
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
