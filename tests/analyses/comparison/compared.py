"""Comparisons shared by several tests: of the addition models on a few sums, and of tiny models."""

import functools
from pathlib import Path
from typing import Any

import pytest

import sparselens as sl
from sparselens import analyses
from sparselens.analyses.comparison import report
from sparselens.analyses.comparison.results import Comparison
from sparselens.tasks import TASKS
from tests.analyses.small_models import tiny_pairs
from tests.tiny_models import tiny_bridge

N = 12
QUICK: dict[str, Any] = {"method": "eap", "all_pairs": True, "progress": False, "prune_runs": 6}


def compared(models: tuple[Any, Any], **options: Any) -> Comparison:
    """Compare two addition models, quickly."""
    settings: dict[str, Any] = {"n": N, "method": "eap", "progress": False}
    return analyses.compare(*models, TASKS["addition"], **(settings | options))


def tiny_models() -> tuple[Any, Any]:
    return tiny_bridge("gpt2"), sl.sparsify(tiny_bridge("gpt2", seed=1), 0.0)


def tiny_comparison(**options: Any) -> Comparison:
    return analyses.compare(*tiny_models(), tiny_pairs(), **(QUICK | options))


@functools.cache
def whole_tiny_comparison() -> Comparison:
    return tiny_comparison()


def draw_nothing(patch: pytest.MonkeyPatch) -> None:
    """Make all figures of reports blank, for tests of the text around them."""
    whole = report.figures_of
    patch.setattr(report, "figures_of", lambda *asked: dict.fromkeys(whole(*asked), _blank))


def _blank(path: Path, **_: Any) -> Path:
    path.write_text('<svg viewBox="0 0 1 1"></svg>')
    return path


def same(one: Comparison, other: Comparison) -> bool:
    return one.table().equals(other.table()) and one.about == other.about
