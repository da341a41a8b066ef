"""The interval of a mean over pairs of groups: hand-computed, and how often it contains the truth."""

import math

import numpy as np
import pytest

from sparselens.analyses.circuits.between_groups import mean_over_cells

NAMES = ["a", "b", "c"]
OFF = ~np.eye(3, dtype=bool)


def test_the_jackknife_by_hand():
    values = np.array([[9.0, 1, 2], [3, 9, 4], [5, 6, 9]])
    found = mean_over_cells(values, OFF, NAMES, NAMES)
    # without a: (4 + 6) / 2 = 5, without b: (2 + 5) / 2 = 3.5, without c: (1 + 3) / 2 = 2; their mean 3.5
    assert found.mean == 3.5 and found.n == 6 and found.groups == 3
    assert found.standard_error == pytest.approx(math.sqrt(2 / 3 * (1.5**2 + 1.5**2)))
    assert found.high - found.mean == pytest.approx(4.302653 * found.standard_error)  # Student's t, 2 degrees


def test_of_one_cell_a_group_it_is_students_interval():
    values = np.diag([1.0, 2, 6])
    found = mean_over_cells(values, ~OFF, NAMES, NAMES)
    assert found.mean == 3 and found.standard_error == pytest.approx(np.std([1, 2, 6], ddof=1) / math.sqrt(3))


def test_two_groups_have_a_mean_and_no_interval():
    found = mean_over_cells(np.ones((2, 2)), ~np.eye(2, dtype=bool), NAMES[:2], NAMES[:2])
    assert found.mean == 1 and math.isnan(found.low) and str(found) == "1"
    with pytest.raises(ValueError, match="no such cell"):
        mean_over_cells(np.ones((1, 1)), np.zeros((1, 1), dtype=bool), ["a"], ["a"])


def test_rows_and_columns_of_other_groups():
    """Circuits of held-out templates: each group is a row or a column, and is left out as such."""
    found = mean_over_cells(np.array([[1.0, 2], [3, 6]]), np.ones((2, 2), dtype=bool), ["a", "b"], ["c", "d"])
    without = [4.5, 1.5, 4, 2]  # a, b, c, d
    assert found.groups == 4 and found.standard_error == pytest.approx(math.sqrt(3 / 4 * np.var(without) * 4))


@pytest.mark.parametrize("groups", [5, 12])
def test_it_holds_the_truth_about_as_often_as_it_says(groups: int):
    """Cells of a row's effect, a column's and noise, with mean zero."""
    random, names = np.random.default_rng(0), [str(number) for number in range(groups)]
    different, held = ~np.eye(groups, dtype=bool), 0
    for _ in range(1000):
        row, column = random.normal(size=(2, groups))
        values = row[:, None] + column + random.normal(size=(groups, groups))
        found = mean_over_cells(values, different, names, names)
        held += found.low <= 0 <= found.high
    assert 0.93 < held / 1000 < 0.98
