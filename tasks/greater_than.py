"""Greater-than: a span of years ends after it begins.

    clean     The war lasted from the year 1743 to the year 17     -> "44", "45", ... "99", not "01", ... "43"
    year_01   The war lasted from the year 1701 to the year 17
A tokenizer has to cut every year into its century and its ending; the few endings that it cuts otherwise in one of the
CENTURIES are left out of questions and answers alike.
Source: Hanna et al. 2023, "How does GPT-2 compute greater-than?", arXiv 2305.00586. Known circuit (GPT-2 small): heads
of layers 5 to 9 attend from END to YY, MLPs 8 to 11 raise the endings above it.
"""

from sparselens.prompts.draw import Draw
from sparselens.prompts.pairs import PromptPair, pair
from sparselens.prompts.task import Lists, Task
from sparselens.prompts.words import Words

# {XX}{YY} is the first year; the second stops after its century.
TEMPLATES = (
    "The {EVENT} lasted from the year {XX}{YY} to the year {END}",
    "In all, the {EVENT} went on from {XX}{YY} until {END}",
    "The records of the {EVENT} reach from {XX}{YY} to {END}",
    "Historians date the {EVENT} from the year {XX}{YY} to the year {END}",
    "Having begun in {XX}{YY}, the {EVENT} ended in {END}",
    "Nobody foresaw in {XX}{YY} that the {EVENT} would last until {END}",
    "The {EVENT} started in the year {XX}{YY} and was over in the year {END}",
    "A book about the {EVENT} covers the years from {XX}{YY} to {END}",
)
EVENTS = tuple(
    """
war siege famine plague drought rebellion dispute expedition voyage campaign occupation alliance truce blockade
feud crisis revolt reign exile marriage apprenticeship construction excavation epidemic partnership trial
negotiation embargo pilgrimage restoration
""".split()
)
# GPT-2 cuts most years of the others elsewhere (" 15" + "43", but " 150" + "3"; " 1943" whole).
CENTURIES = ("12", "14", "16", "17")
ENDINGS = tuple(f"{year:02}" for year in range(1, 100))


def draw(random: Draw, words: Lists, corruption: str) -> PromptPair:  # noqa: ARG001 - there is but one
    """One pair; the first year is neither of the outermost, so that there are right answers, and a change."""
    endings, century = words["two-digit ending"], random.choice(CENTURIES)
    year = 1 + random.below(len(endings) - 2)
    slots = {"EVENT": random.choice(EVENTS), "XX": century, "YY": endings[year], "END": century}
    right, wrong = tuple(endings[year + 1 :]), tuple(endings[: year + 1])
    return pair(random.choice(TEMPLATES), slots, {"YY": "01"}, right, wrong)


def _in_every_century(ending: str) -> tuple[tuple[str, str], ...]:
    return tuple((f" {century}", ending) for century in CENTURIES)


greater_than = Task(
    "greater_than",
    "in which year does a span of years end?",
    draw,
    words={"two-digit ending": Words(ENDINGS, _in_every_century, need=3)},
    corruptions={"year_01": ("YY",)},
    metric="probability_difference",
    source="Hanna et al. 2023, arXiv 2305.00586",
    circuit="heads that attend from END to YY, then MLPs that raise greater endings (GPT-2 small)",
)
