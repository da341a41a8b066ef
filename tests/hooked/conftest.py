"""What every test of a HookedTransformer runs under: its makers warn that they have left it behind."""

from pathlib import Path

import pytest

KNOWN = pytest.mark.filterwarnings("ignore:HookedTransformer is deprecated:DeprecationWarning")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:  # of the whole run
        if Path(__file__).parent in item.path.parents:
            item.add_marker(KNOWN)
