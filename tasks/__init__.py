"""The tasks that models are evaluated on: one per file, strings and labels only. `TASKS` holds them by name."""

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from sparselens.names import unknown
from sparselens.prompts.task import Task
from sparselens.results import Result, html_table
from sparselens.tasks.acronyms import acronyms
from sparselens.tasks.addition import Addition, addition_task
from sparselens.tasks.arithmetic import arithmetic
from sparselens.tasks.brackets import brackets
from sparselens.tasks.colored_objects import colored_objects
from sparselens.tasks.country_capital import country_capital
from sparselens.tasks.docstring import docstring
from sparselens.tasks.fact_retrieval import fact_retrieval
from sparselens.tasks.gendered_pronoun import gendered_pronoun
from sparselens.tasks.greater_than import greater_than
from sparselens.tasks.hypernymy import hypernymy
from sparselens.tasks.induction import induction, induction_text
from sparselens.tasks.ioi import ioi, ioi_stories
from sparselens.tasks.modular_addition import modular_addition
from sparselens.tasks.multiple_choice import multiple_choice
from sparselens.tasks.opposites import opposites, opposites_quoted, opposites_stories
from sparselens.tasks.subject_verb_agreement import subject_verb_agreement, subject_verb_agreement_stories
from sparselens.tasks.successor import successor

_ALL = (
    addition_task(Addition()),
    addition_task(Addition(causal=True)),
    ioi,
    ioi_stories,
    greater_than,
    docstring,
    gendered_pronoun,
    subject_verb_agreement,
    subject_verb_agreement_stories,
    induction,
    induction_text,
    colored_objects,
    country_capital,
    hypernymy,
    opposites,
    opposites_stories,
    opposites_quoted,
    successor,
    arithmetic,
    modular_addition,
    acronyms,
    brackets,
    multiple_choice,
    fact_retrieval,
)


class Tasks(Result, dict[str, Task]):
    """Tasks by name, displayed as a list with an example of each."""

    def __missing__(self, name: str) -> NoReturn:
        raise unknown("task", name, self)

    def _line(self) -> str:
        return f"{len(self)} tasks"

    def _columns(self) -> Mapping[str, Sequence[Any]]:
        return {
            "task": list(self),
            "asks": [task.description for task in self.values()],
            "example": [str(task.pairs(1)[0]) for task in self.values()],
        }

    def __repr__(self) -> str:
        rows = zip(*self._columns().values(), strict=True)
        return "\n".join(f"{name:<30} {_cut(asks, 34):<34} {_cut(example, 54)}" for name, asks, example in rows)

    def _repr_html_(self) -> str:
        return html_table(self._line(), self.to_frame(), shown=len(self))


def _cut(text: str, width: int) -> str:
    """The text on one line. If too long, the middle is cut out, since the answers are at the end."""
    text = text.replace("\n", "\\n")
    return text if len(text) <= width else f"{text[: width // 3]}…{text[width // 3 + 1 - width :]}"


TASKS: Mapping[str, Task] = Tasks({task.name: task for task in _ALL})

__all__ = ["TASKS", "find_task"]


def find_task(name: str) -> Task:
    """The task with this name.

    Raises:
        ValueError: there is no such task.
    """
    return TASKS[name]
