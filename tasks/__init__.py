"""What models are asked to do: one task per file, strings and labels only. `TASKS` finds a task by its name."""

from collections.abc import Mapping

from sparselens.task import Task
from sparselens.tasks.addition import Addition, addition_task
from sparselens.tasks.ioi import ioi, ioi_stories

TASKS: Mapping[str, Task] = {
    task.name: task for task in (addition_task(Addition()), addition_task(Addition(causal=True)), ioi, ioi_stories)
}

__all__ = ["TASKS", "find_task"]


def find_task(name: str) -> Task:
    """The task of that name.

    Raises:
        ValueError: there is none.
    """
    if name not in TASKS:
        raise ValueError(f"no such task: {name!r} (want {', '.join(TASKS)})")
    return TASKS[name]
