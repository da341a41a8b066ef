"""What models are asked to do: one task per file, strings and labels only. `TASKS` finds a task by its name."""

from collections.abc import Mapping

from sparselens.prompts.task import Task
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
TASKS: Mapping[str, Task] = {task.name: task for task in _ALL}

__all__ = ["TASKS", "find_task"]


def find_task(name: str) -> Task:
    """The task of that name.

    Raises:
        ValueError: there is none.
    """
    if name not in TASKS:
        raise ValueError(f"no such task: {name!r} (want {', '.join(TASKS)})")
    return TASKS[name]
