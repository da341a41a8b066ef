"""The comparison of the addition models on a few sums that several tests look at."""

from typing import Any

from sparselens import analyses
from sparselens.analyses.comparison.results import Comparison
from sparselens.tasks import TASKS

N = 12


def compared(models: tuple[Any, Any], **options: Any) -> Comparison:
    """Compare two addition models, quickly."""
    settings: dict[str, Any] = {"n": N, "method": "eap", "progress": False}
    return analyses.compare(*models, TASKS["addition"], **(settings | options))
