"""What models are asked to do: one task per file, strings and labels only. `TASKS` finds a task by its name."""

from collections.abc import Mapping

from sparselens.tasks.addition import Addition

TASKS: Mapping[str, Addition] = {
    "addition": Addition(),
    "addition-causal": Addition(causal=True),
}

__all__ = ["TASKS", "Addition"]
