"""A browser and a model for each test file of the live page."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.chromium import Page, browser


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture(scope="module")
def sparse() -> Any:
    import sparselens as sl  # not before `tests/conftest.py` has chosen how kernels run

    return sl.load("stories260k-sparse")
