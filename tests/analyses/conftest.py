"""What several tests of comparisons need, made once.

Imports stand in the fixtures: pytest reads this file before `tests/conftest.py` has chosen how kernels run.
"""

from typing import TYPE_CHECKING, Any

import pytest
from filelock import FileLock

if TYPE_CHECKING:
    from sparselens.analyses.comparison.results import Comparison


@pytest.fixture(scope="session")
def models() -> tuple[Any, Any]:
    """The dense and the sparse addition model."""
    import sparselens as sl

    return sl.load("addition"), sl.load("addition-sparse")


@pytest.fixture(scope="session")
def comparison(
    models: tuple[Any, Any], tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> "Comparison":
    """Both on a few sums. Of several processes that run tests one makes it, and the others read it."""
    from sparselens.analyses import load_comparison
    from tests.analyses.comparison.compared import compared

    folder = tmp_path_factory.getbasetemp()
    folder = folder.parent if hasattr(request.config, "workerinput") else folder
    with FileLock(folder / "comparison.lock"):
        made = folder / "comparison"
        return load_comparison(made) if made.exists() else compared(models, out=made)
