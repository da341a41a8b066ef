"""How results are displayed: as one line, as a small table in a notebook, as a tidy pandas frame.

A result class defines its line and the columns of its frame; the rest is here. `plot()`, if a class has it, returns a
plotly figure.
"""

import html
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    import pandas

SHOWN = 10  # rows in a notebook's table


class Result(ABC):
    """Base class of results: display in a terminal and in a notebook."""

    _largest: ClassVar[str] = ""  # the column by whose absolute value a notebook's table is sorted

    @abstractmethod
    def _line(self) -> str:
        """What was measured and the main finding, in a few words."""

    @abstractmethod
    def _columns(self) -> Mapping[str, Sequence[Any]]:
        """Columns of the tidy frame, which has one row per measurement."""

    def to_frame(self) -> "pandas.DataFrame":
        """The result as a tidy pandas frame, one row per measurement."""
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
        """A plotly figure ("bar", "line" or "histogram") of a frame, titled with the result's line."""
        from plotly import express

        draw = getattr(express, kind)
        return draw(frame, title=html.escape(repr(self)), template="plotly_white", **options)


def html_table(title: str, frame: "pandas.DataFrame", shown: int = SHOWN) -> str:
    """A title and the first rows of a frame in a scrolling box; all text is escaped."""
    table = frame.head(shown).to_html(index=False, border=0, justify="left", float_format="{:.4g}".format, na_rep="")
    more = f"<i>{len(frame) - shown:,} more rows: .to_frame()</i>" if len(frame) > shown else ""
    box = "max-height:13em;overflow:auto;width:fit-content;max-width:100%"
    return f'<div><code>{html.escape(title)}</code><div style="{box}">{table}{more}</div></div>'
