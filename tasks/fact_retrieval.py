"""Fact retrieval: a fact about a subject, which is not stated in the prompt.

    clean     The chemical symbol for gold is      -> " Au", not " Fe"
    other     The chemical symbol for iron is
Source: Meng et al. 2022, arXiv 2202.05262; Geva et al. 2023, arXiv 2304.14767. Known circuit: MLPs at the last token of
the subject enrich it, later attention heads extract the attribute to END. The facts are in `fact_table`, with a source
for each kind; capitals are a separate task.
"""

from sparselens.prompts.draw import Draw
from sparselens.prompts.pairs import PromptPair, pair
from sparselens.prompts.task import Lists, Task
from sparselens.prompts.words import Words, spaced
from sparselens.tasks.fact_table import FACTS
from sparselens.tasks.kinds import usable_kinds

Fact = tuple[str, str]
BEFORE = ("", "Here is a fact. ", "Listen to this. ")  # possible beginnings of a prompt


def facts(table: str) -> list[Fact]:
    """The (subject, answer) pairs in a text of the form "subject: answer, ..."."""
    rows = (row.partition(":") for row in table.split(","))
    return [(subject.strip(), answer.strip()) for subject, _, answer in rows]


def draw(random: Draw, words: Lists, corruption: str) -> PromptPair:  # noqa: ARG001 - of type DrawPair
    """One pair about two subjects of the same kind."""
    kind, known = random.choice(usable_kinds(words))
    (subject, answer), (other, wrong) = random.sample(known, 2)
    template = random.choice(BEFORE) + random.choice(FACTS[kind][0])
    return pair(template, {"SUBJECT": subject}, {"SUBJECT": other}, f" {answer}", f" {wrong}")


fact_retrieval = Task(
    "fact_retrieval",
    "what a model knows about a subject that the prompt only names",
    draw,
    words={kind: Words(facts(table), lambda fact: spaced(fact[1]), need=0) for kind, (_, _, table) in FACTS.items()},
    corruptions={"other": ("SUBJECT",)},
    source="after Meng et al. 2022, arXiv 2202.05262",
    circuit="MLPs at the subject's last token, then attention heads that extract the attribute (GPT-J, GPT-2 XL)",
    version=2,
)
