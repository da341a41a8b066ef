"""Pages as files and in notebooks: in a frame that may only run its own script, over a still picture.

In a notebook that is not trusted the frame is stripped, and the picture shows.
"""

import base64
import html
from pathlib import Path
from typing import Any

from sparselens.files.whole import write_file


def framed(page: str, picture: bytes, title: str, height: str = "0", room: str = "0") -> str:
    """HTML of the page over its picture (a PNG): at least `height` high, or `room` higher than the picture (CSS)."""
    still = base64.b64encode(picture).decode()
    return (
        f'<div style="position:relative; min-height:{height}; padding-bottom:{room}">'
        f'<img style="width:100%; background:white" alt="{html.escape(title)}" src="data:image/png;base64,{still}">'
        '<iframe style="position:absolute; inset:0; width:100%; height:100%; border:0; background:white" '
        f'sandbox="allow-scripts allow-downloads" srcdoc="{html.escape(page)}"></iframe></div>'
    )


class Page:
    """An interactive page: one file that needs no network. It has its `html`, and a `_repr_html_` for notebooks."""

    def save_html(self, path: str | Path) -> Path:
        """Write the page, completely or not at all."""
        page: Any = self
        return write_file(Path(path), page.html.encode())

    def show(self) -> None:
        """Show the page in a notebook."""
        from IPython.display import HTML, display

        page: Any = self
        display(HTML(page._repr_html_()))
