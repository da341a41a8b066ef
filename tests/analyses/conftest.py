"""What several tests of comparisons need, made once."""

from typing import Any

import pytest
from filelock import FileLock

import sparselens as sl
from sparselens.analyses import load_comparison
from sparselens.analyses.comparison.results import Comparison
from tests.analyses.comparison.compared import compared


@pytest.fixture(scope="session")
def models() -> tuple[Any, Any]:
    """The dense and the sparse addition model."""
    return sl.load("addition"), sl.load("addition-sparse")


@pytest.fixture(scope="session")
def comparison(
    models: tuple[Any, Any], tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Comparison:
    """Both on a few sums. Of several processes that run tests one makes it, and the others read it."""
    folder = tmp_path_factory.getbasetemp()
    folder = folder.parent if hasattr(request.config, "workerinput") else folder
    with FileLock(folder / "comparison.lock"):
        made = folder / "comparison"
        return load_comparison(made) if made.exists() else compared(models, out=made)
