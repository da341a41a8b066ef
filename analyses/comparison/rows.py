"""Rows of numbers for a dense and a sparse model, written as a pandas frame, Markdown, LaTeX or HTML.

All numbers of a row have the same number of decimals: enough to give each estimate three digits. Counts are integers.
"""

import html
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sparselens.analyses.comparison.results import SIDES
from sparselens.prompts.intervals import Interval

NEVER = math.inf  # number of components or edges needed, if even all of them are not enough

Value = Interval | float | None  # None: not computed for this model
Values = tuple[Value, Value]  # dense, sparse


@dataclass(frozen=True)
class Row:
    """One quantity, and its values for both models."""

    section: str
    name: str
    values: Values
    ratio: Interval | None = None  # dense / sparse
    percent: bool = False
    digits: int = 3  # at least this many significant digits in each estimate
    count: bool = False  # the values are integers


def _frame(rows: Sequence[Row], _: tuple[str, str]) -> Any:
    import pandas as pd

    columns = {
        f"{name}{suffix}": [_number((*row.values, row.ratio)[number], place) for row in rows]
        for number, name in enumerate((*SIDES, "ratio"))
        for suffix, place in (("", "mean"), ("_low", "low"), ("_high", "high"))
    }
    index = pd.MultiIndex.from_tuples([(row.section, row.name) for row in rows], names=["section", "quantity"])
    return pd.DataFrame(columns, index=index, dtype=float)  # turns None into NaN, even in a column of nothing but None


def _number(value: Value, place: str) -> float | None:
    if isinstance(value, Interval):
        return getattr(value, place)
    return value if place == "mean" else None


def cells(row: Row) -> tuple[str, str, str]:
    """The row's values as printed."""
    places = max(_places(value, row) for value in row.values)
    dense, sparse = (_formatted(value, row.percent, places) for value in row.values)
    return dense, sparse, times(row.ratio)


def formatted(value: float, row: Row) -> str:
    """A single number of the row as printed, with the decimals that it needs by itself."""
    return _formatted(value, row.percent, _places(value, row))


def times(ratio: Interval | None) -> str:
    """A ratio, such as 4.80x [4.10, 5.63]."""
    if ratio is None:
        return ""
    places = _decimals(ratio, 3)
    around = f" [{ratio.low:,.{places}f}, {ratio.high:,.{places}f}]" if math.isfinite(ratio.low) else ""
    return f"{ratio.mean:,.{places}f}x{around}"


def _places(value: Value, row: Row) -> int:
    """How many decimals this value of the row needs; at least one for a percentage."""
    if row.count or value is None or value == NEVER:
        return 0
    return max(_decimals(value, row.digits, 100.0 if row.percent else 1.0), int(row.percent))


def _decimals(value: Interval | float, digits: int, unit: float = 1.0) -> int:
    """How many decimals give an estimate that many significant digits; at most `digits + 1`, if it is almost zero."""
    mean, *ends = (value.mean, value.low, value.high) if isinstance(value, Interval) else (value,)
    size = unit * (abs(mean) or max((abs(end) for end in ends if math.isfinite(end)), default=0.0))
    if not size or not math.isfinite(size):
        return digits - 1
    exponent = int(f"{size:.{digits - 1}e}".partition("e")[2])  # of the rounded number: 99.96 becomes 100
    return min(max(digits - 1 - exponent, 0), digits + 1)


def _formatted(value: Value, as_percent: bool, places: int) -> str:
    """A value with its interval, if it has one; empty if undefined, such as the overlap of a single prompt."""
    if isinstance(value, Interval):
        ends = [_formatted(end, as_percent, places) for end in (value.low, value.high)]
        return _formatted(value.mean, as_percent, places) + (f" [{', '.join(ends)}]" if all(ends) else "")
    if value == NEVER:
        return "not reached"
    if value is None or not math.isfinite(value):
        return ""
    number = round(100 * value if as_percent else value, places) + 0.0  # turns -0.0 into 0.0
    return f"{number:,.{places}f} %" if as_percent else f"{number:,.{places}f}"


def percent(share: float) -> str:
    """A share as a percentage: 90 %."""
    return f"{100 * share:.3g} %"


def _markdown(rows: Sequence[Row], names: tuple[str, str]) -> str:
    dense, sparse = (html.escape(name).replace("|", "\\|") for name in names)
    lines = [f"| | {dense} | {sparse} | dense / sparse |", "|---|---|---|---|"]
    lines += [f"| {row.name} | {' | '.join(cells(row))} |" for row in rows]
    return "\n".join(lines) + "\n"


def _latex(rows: Sequence[Row], names: tuple[str, str]) -> str:
    head = " & ".join(("", *(_escaped(name) for name in names), "dense / sparse"))
    lines = [r"\begin{tabular}{lrrr}", r"\toprule", head + r" \\"]
    section = ""
    for row in rows:
        if row.section != section:
            lines.append(r"\midrule")
            section = row.section
        values = (_escaped(cell).replace("x [", r"$\times$ [") for cell in cells(row))
        lines.append(" & ".join((_escaped(row.name), *values)) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def html_table(rows: Sequence[Row], names: tuple[str, str], found: Sequence[str] = ()) -> str:
    """The rows as HTML. Rows named in `found` get the CSS class `found`; the first of each section gets `first`."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in ("", *names, "dense / sparse"))
    section, body = "", list[str]()
    for row in rows:
        kinds = ["first"] * (row.section != section) + ["found"] * (row.name in found)
        section, kind = row.section, f' class="{" ".join(kinds)}"' if kinds else ""
        body.append(f"<tr{kind}>" + "".join(f"<td>{html.escape(c)}</td>" for c in (row.name, *cells(row))) + "</tr>")
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"


def _escaped(text: str) -> str:
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return "".join(special.get(c, f"\\{c}" if c in "&%$#_{}" else c) for c in text)


FORMS: dict[str, Callable[[Sequence[Row], tuple[str, str]], Any]] = {
    "pandas": _frame,
    "markdown": _markdown,
    "latex": _latex,
    "html": html_table,
}
