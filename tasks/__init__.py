"""What models are asked to do: one task per file, strings and labels only. `TASKS` finds a task by its name."""

from collections.abc import Mapping

from sparselens.task import Task
from sparselens.tasks.ioi import ioi, ioi_stories

TASKS: Mapping[str, Task] = {task.name: task for task in (ioi, ioi_stories)}

__all__ = ["TASKS"]
