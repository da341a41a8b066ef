"""A thousand pairs of a task, drawn once for all that is asked of them."""

from functools import cache

import jaxtyping
import pytest

from sparselens.prompts.pairs import PromptPair
from sparselens.tasks import TASKS

N = 1000


def thousand(name: str, corruption: str | None = None) -> tuple[PromptPair, ...]:
    """The pairs of seed 0. Drawn without jaxtyping's checks, which take five times as long and see every other draw."""
    return _thousand(name, TASKS[name].find_corruption(corruption))


@cache
def _thousand(name: str, corruption: str) -> tuple[PromptPair, ...]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jaxtyping.config, "jaxtyping_disable", True)
        return tuple(TASKS[name].pairs(N, corruption=corruption))
