"""Greater-than: a span of years ends after it begins.

    clean     The war lasted from the year 1743 to the year 17     -> "44", "45", ... "99", not "01", ... "43"
    year_01   The war lasted from the year 1701 to the year 17
Where the prompt stops depends on how a tokenizer splits a year. Into century and ending, as above (GPT-2): the few
endings that it splits differently in one of the CENTURIES are left out. Into single digits (Llama 2, Qwen, Gemma,
SmolLM2): the answer is the tens digit, and the first year's own tens digit is neither right nor wrong. Into three
digits and one (Llama 3): the answer is the last digit.
    clean     The war lasted from the year 1743 to the year 17     -> "5", ... "9", not "0", ... "3"
    year_01   The war lasted from the year 1703 to the year 17
    clean     The war lasted from the year 1743 to the year 174    -> "4", ... "9", not "0", ... "3"
    year_01   The war lasted from the year 1740 to the year 174
Source: Hanna et al. 2023, "How does GPT-2 compute greater-than?", arXiv 2305.00586. Known circuit (GPT-2 small): heads
in layers 5 to 9 attend from END to YY, MLPs 8 to 11 raise the logits of greater endings.
"""

from sparselens.prompts.draw import Draw
from sparselens.prompts.pairs import PromptPair, pair
from sparselens.prompts.task import Lists, Task
from sparselens.prompts.words import Continuation, Words
from sparselens.tasks.kinds import usable_kinds

# {XX}{YY}{unit} is the first year; the second one stops where the tokenizer splits a year.
TEMPLATES = (
    "The {EVENT} lasted from the year {XX}{YY}{unit} to the year {END}",
    "In all, the {EVENT} went on from {XX}{YY}{unit} until {END}",
    "The records of the {EVENT} reach from {XX}{YY}{unit} to {END}",
    "Historians date the {EVENT} from the year {XX}{YY}{unit} to the year {END}",
    "Having begun in {XX}{YY}{unit}, the {EVENT} ended in {END}",
    "Nobody foresaw in {XX}{YY}{unit} that the {EVENT} would last until {END}",
    "The {EVENT} started in the year {XX}{YY}{unit} and was over in the year {END}",
    "A book about the {EVENT} covers the years from {XX}{YY}{unit} to {END}",
)
EVENTS = tuple(
    """
war siege famine plague drought rebellion dispute expedition voyage campaign occupation alliance truce blockade
feud crisis revolt reign exile marriage apprenticeship construction excavation epidemic partnership trial
negotiation embargo pilgrimage restoration
""".split()
)
# In other centuries GPT-2 splits many years differently (" 15" + "43", but " 150" + "3"; " 1943" is one token).
CENTURIES = ("12", "14", "16", "17")
ENDINGS = tuple(f"{year:02}" for year in range(1, 100))
DIGITS = tuple("0123456789")


def draw(random: Draw, words: Lists, corruption: str) -> PromptPair:  # noqa: ARG001 - there is but one
    """One pair. The first year is never the last ending (there would be no right answer) nor the first (no change)."""
    ((kind, endings), *_) = usable_kinds(words, entries=3)  # the first kind that fits the tokenizer
    century, place = random.choice(CENTURIES), 1 + random.below(len(endings) - 2)
    event, template = random.choice(EVENTS), random.choice(TEMPLATES)
    right, wrong = tuple(endings[place + 1 :]), tuple(endings[: place + 1])
    slots = {"EVENT": event, "XX": century, "YY": endings[place], "unit": "", "END": century}
    if kind == "tens digit":
        slots["unit"], wrong = random.choice(DIGITS), wrong[:-1]
    elif kind == "last digit":
        slots["XX"] = slots["END"] = century + random.choice(DIGITS)
    return pair(template, slots, {"YY": "01" if kind == "two-digit ending" else "0"}, right, wrong)


def _in_every_century(ending: str) -> tuple[Continuation, ...]:
    return tuple((f" {century}", ending) for century in CENTURIES)


def _in_every_decade(digit: str) -> tuple[Continuation, ...]:
    return tuple((f" {century}{decade}", digit) for century in CENTURIES for decade in DIGITS)


greater_than = Task(
    "greater_than",
    "in which year does a span of years end?",
    draw,
    words={
        "two-digit ending": Words(ENDINGS, _in_every_century, need=0),
        "tens digit": Words(DIGITS, _in_every_century, need=0),
        "last digit": Words(DIGITS, _in_every_decade, need=0),
    },
    corruptions={"year_01": ("YY",)},
    metric="probability_difference",
    source="Hanna et al. 2023, arXiv 2305.00586",
    circuit="heads that attend from END to YY, then MLPs that raise greater endings (GPT-2 small)",
)
