"""Interactive pages as files and in notebooks, where a sandboxed frame covers a still picture.

If the notebook is not trusted, Jupyter removes the frame and the picture remains visible.
"""

import base64
import html
from pathlib import Path
from typing import Any

from sparselens.analyses.figures.page import write_page


def framed(page: str, picture: bytes, title: str, height: str = "0", room: str = "0") -> str:
    """HTML of the page on top of its PNG: at least `height` high, and `room` higher than the picture (CSS lengths)."""
    still = base64.b64encode(picture).decode()
    return (
        f'<div style="position:relative; min-height:{height}; padding-bottom:{room}">'
        f'<img style="width:100%; background:white" alt="{html.escape(title)}" src="data:image/png;base64,{still}">'
        '<iframe style="position:absolute; inset:0; width:100%; height:100%; border:0; background:white" '
        f'sandbox="allow-scripts allow-downloads" srcdoc="{html.escape(page)}"></iframe></div>'
    )


class Page:
    """Base of interactive pages, one file each that needs no network. Subclasses provide `html` and `_repr_html_`."""

    def save_html(self, path: str | Path) -> Path:
        """Write the page, either completely or not at all."""
        page: Any = self
        return write_page(path, lambda: page.html)

    def show(self) -> None:
        """Show the page in a notebook."""
        from IPython.display import HTML, display

        page: Any = self
        display(HTML(page._repr_html_()))
