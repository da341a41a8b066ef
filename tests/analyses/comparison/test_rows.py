"""How the numbers of a table are printed."""

import math
import re
from typing import Any

import pytest

from sparselens.analyses.comparison.results import Comparison
from sparselens.analyses.comparison.rows import Row, cells
from sparselens.analyses.comparison.table import rows_of
from sparselens.prompts.intervals import Interval


def between(mean: float, low: float, high: float) -> Interval:
    return Interval(mean, low, high, 0.1, 9)


def test_tables_in_three_forms(comparison: Comparison):
    rows = rows_of(comparison)
    frame, markdown, latex = (comparison.table(form) for form in ("pandas", "markdown", "latex"))
    assert len(frame) == len(rows) == markdown.count("\n") - 2 == latex.count(r"\\") - 1
    assert (
        comparison._repr_html_() == comparison.table("html") and comparison.table("html").count("<tr") == len(rows) + 1
    )
    assert latex.startswith("\\begin{tabular}{lrrr}\n\\toprule\n") and latex.rstrip().endswith("\\end{tabular}")
    assert "100.0 \\%" in latex and not any(line.count("&") != 3 for line in latex.splitlines() if "\\\\" in line)
    with pytest.raises(ValueError, match=r"no such form of a table: 'word' \(want pandas, markdown, latex, html\)"):
        comparison.table("word")


COUNTED = "23 | 2,461 [28, 2,461] | 13.0x [9.9, 14.5]"


@pytest.mark.parametrize(
    ("values", "ratio", "kind", "printed"),
    [
        (((1.024, 0.995, 1.04), (0.8, 0.7504, 0.874)), None, {}, "1.024 [0.995, 1.040] | 0.800 [0.750, 0.874] | "),
        ((369.92, (25.5, 23.0, 28.06)), None, {}, "369.9 | 25.5 [23.0, 28.1] | "),
        (((2.0, 1.5, 2.5), None), None, {}, "2.00 [1.50, 2.50] |  | "),
        ((1.0, 0.00902), None, {"percent": True}, "100.000 % | 0.902 % | "),
        (((1.0, 0.963, 1.0), 0.5), None, {"percent": True}, "100.0 % [96.3 %, 100.0 %] | 50.0 % | "),
        ((23.0, (2461.0, 28.4, 2461.0)), (13.04, 9.9, 14.5), {"count": True}, COUNTED),
        (((0.003061, 0.0028, 0.0034), 1e-9), None, {"digits": 4}, "0.00306 [0.00280, 0.00340] | 0.00000 | "),
        ((0.0, -0.0001), None, {}, "0.0000 | -0.0001 | "),
        ((math.inf, (0.0, -0.031, 0.02)), None, {}, "not reached | 0.0000 [-0.0310, 0.0200] | "),
        ((9.996, 9.5), (0.9996, 0.5, 1.5), {}, "10.00 | 9.50 | 1.00x [0.50, 1.50]"),
    ],
)  # fmt: skip
def test_numbers_of_a_row_have_the_same_decimals(values: Any, ratio: Any, kind: dict[str, Any], printed: str):
    dense, sparse, both = (between(*x) if isinstance(x, tuple) else x for x in (*values, ratio))
    assert " | ".join(cells(Row("", "", (dense, sparse), both, **kind))) == printed


def test_every_estimate_is_told_to_three_digits_and_what_is_counted_is_whole(comparison: Comparison):
    for row in rows_of(comparison):
        told = [re.findall(r"-?\d[\d,]*(?:\.\d+)?", cell) for cell in cells(row)[:2]]
        decimals = {len(number.partition(".")[2]) for numbers in told for number in numbers}
        assert len(decimals) <= 1, row.name
        if row.count:
            assert decimals <= {0}, row.name
        for numbers, value in zip(told, row.values, strict=True):
            mean = value.mean if isinstance(value, Interval) else value
            if numbers and not row.count and mean is not None and abs(mean) > 0.01:
                assert len(re.sub(r"\D", "", numbers[0]).lstrip("0")) >= 3, row.name
