"""What several tests of comparisons need, made once."""

from typing import Any

import pytest

import sparselens as sl
from sparselens.analyses.comparison.results import Comparison
from tests.analyses.comparison.compared import compared


@pytest.fixture(scope="session")
def models() -> tuple[Any, Any]:
    """The dense and the sparse addition model."""
    return sl.load("addition"), sl.load("addition-sparse")


@pytest.fixture(scope="session")
def comparison(models: tuple[Any, Any], tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """Both on a few sums."""
    return compared(models, out=tmp_path_factory.mktemp("comparison") / "numbers")
