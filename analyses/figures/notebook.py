"""How a page shows in a notebook: in a frame that may do nothing but run its own script, over a still picture.

Where a notebook is not trusted the frame is stripped, and the picture shows.
"""

import base64
import html
from typing import Any


def framed(page: str, picture: bytes, title: str, height: str = "0", room: str = "0") -> str:
    """HTML of the page over its picture (a PNG): at least `height` high, or `room` higher than the picture (CSS)."""
    still = base64.b64encode(picture).decode()
    return (
        f'<div style="position:relative; min-height:{height}; padding-bottom:{room}">'
        f'<img style="width:100%; background:white" alt="{html.escape(title)}" src="data:image/png;base64,{still}">'
        '<iframe style="position:absolute; inset:0; width:100%; height:100%; border:0; background:white" '
        f'sandbox="allow-scripts allow-downloads" srcdoc="{html.escape(page)}"></iframe></div>'
    )


def show(drawing: Any) -> None:
    """Show anything with a `_repr_html_` in a notebook."""
    from IPython.display import HTML, display

    display(HTML(drawing._repr_html_()))
