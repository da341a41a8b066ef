"""How results show themselves: one line, a small table in a notebook, a tidy pandas frame.

A result defines its line and the columns of its frame; the rest is here. A `plot()`, where there is one, is a plotly
figure.
"""

import html
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    import pandas

SHOWN = 10  # rows of a table in a notebook


class Result(ABC):
    """What every result can do, in a terminal and in a notebook."""

    _largest: ClassVar[str] = ""  # the column by whose size a notebook's table is ordered

    @abstractmethod
    def _line(self) -> str:
        """What was measured, and the finding, in a few words."""

    @abstractmethod
    def _columns(self) -> Mapping[str, Sequence[Any]]:
        """Columns of the tidy frame, one row for each thing that was measured."""

    def to_frame(self) -> "pandas.DataFrame":
        """The result as a tidy pandas frame, one row for each thing that was measured."""
        import pandas

        return pandas.DataFrame(self._columns())

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._line()})"

    def _repr_html_(self) -> str:
        frame = self.to_frame()
        if self._largest:
            frame = frame.sort_values(self._largest, key=abs, ascending=False, kind="stable")
        return html_table(repr(self), frame)

    def _figure(self, kind: str, frame: "pandas.DataFrame", **options: Any) -> Any:
        """A plotly figure of a frame, below the result's line: "bar", "line" or "histogram"."""
        from plotly import express

        draw = getattr(express, kind)
        return draw(frame, title=html.escape(repr(self)), template="plotly_white", **options)


def html_table(title: str, frame: "pandas.DataFrame", shown: int = SHOWN) -> str:
    """The first rows of a frame below a line of text, in a box that scrolls; all text escaped."""
    table = frame.head(shown).to_html(index=False, border=0, justify="left", float_format="{:.4g}".format, na_rep="")
    more = f"<i>{len(frame) - shown:,} more rows: .to_frame()</i>" if len(frame) > shown else ""
    box = "max-height:13em;overflow:auto;width:fit-content;max-width:100%"
    return f'<div><code>{html.escape(title)}</code><div style="{box}">{table}{more}</div></div>'
