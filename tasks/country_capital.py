"""Country and capital: which city is the capital of a country?

    clean          The capital of France is the city of     -> " Paris", not " Rome"
    other_country  The capital of Italy is the city of
Source: the relation of Todd et al. 2023, "Function vectors in large language models", arXiv 2310.15213, and others; the
facts are from Wikipedia's list of national capitals (2024), without disputed, shared and eponymous ones. Circuit: for
facts in general (Geva et al. 2023, arXiv 2304.14767), early MLPs enrich COUNTRY, late attention moves the capital to
END.
"""

from sparselens.prompts.draw import Draw
from sparselens.prompts.pairs import PromptPair, pair
from sparselens.prompts.task import Lists, Task
from sparselens.prompts.words import Words, spaced

TEMPLATES = (
    "The capital of {COUNTRY} is the city of",
    "The capital city of {COUNTRY} is called",
    "Everybody learns at school that the capital of {COUNTRY} is",
    "The ministers came back to {COUNTRY} and landed in its capital,",
    "They wanted to see the capital of {COUNTRY}, so they bought tickets to",
    "The embassy in {COUNTRY} is, of course, in the capital,",
    "Question: What is the capital of {COUNTRY}? Answer:",
    "Of all the cities of {COUNTRY}, the capital is",
    "My uncle moved to {COUNTRY}, where he lives in the capital city,",
    "If you travel to {COUNTRY}, do not miss its capital,",
    "The government of {COUNTRY} sits in",
    "The parliament of {COUNTRY} is in the capital,",
    "The plane to the capital of {COUNTRY} will soon land in",
    "On the map of {COUNTRY}, a star marks the capital,",
    "The name of the capital of {COUNTRY} is",
    "Q: Which city is the capital of {COUNTRY}? A:",
    "She was born in {COUNTRY}, in the capital city of",
    "Our ambassador to {COUNTRY} lives in its capital,",
    "He knew every street in the capital of {COUNTRY},",
    "Every tourist in {COUNTRY} visits the capital,",
    "In the quiz she was asked for the capital of {COUNTRY} and said",
    "The letter came from {COUNTRY}, from the capital city,",
    "They got married in {COUNTRY}, in its capital,",
    "If you ask for the capital of {COUNTRY}, the answer is",
    "The team flew to {COUNTRY} to play in the capital,",
    "The museum is in {COUNTRY}, in the capital,",
    "The road crosses the whole of {COUNTRY} and ends in the capital,",
)
CAPITALS = tuple(
    tuple(fact.split("/"))
    for fact in """
France/Paris Germany/Berlin Italy/Rome Spain/Madrid Portugal/Lisbon Belgium/Brussels Austria/Vienna Poland/Warsaw
Hungary/Budapest Greece/Athens Sweden/Stockholm Norway/Oslo Denmark/Copenhagen Finland/Helsinki Ireland/Dublin
Russia/Moscow Turkey/Ankara Romania/Bucharest Bulgaria/Sofia Serbia/Belgrade Croatia/Zagreb Albania/Tirana
Slovakia/Bratislava Latvia/Riga Estonia/Tallinn Lithuania/Vilnius Belarus/Minsk Iceland/Reykjavik Malta/Valletta
Cyprus/Nicosia China/Beijing Japan/Tokyo Pakistan/Islamabad Afghanistan/Kabul Iran/Tehran Iraq/Baghdad Syria/Damascus
Lebanon/Beirut Jordan/Amman Qatar/Doha Oman/Muscat Thailand/Bangkok Vietnam/Hanoi Nepal/Kathmandu Bangladesh/Dhaka
Azerbaijan/Baku Armenia/Yerevan Uzbekistan/Tashkent Egypt/Cairo Libya/Tripoli Morocco/Rabat Kenya/Nairobi Ghana/Accra
Nigeria/Abuja Uganda/Kampala Rwanda/Kigali Zimbabwe/Harare Zambia/Lusaka Senegal/Dakar Angola/Luanda Cuba/Havana
Jamaica/Kingston Canada/Ottawa Peru/Lima Chile/Santiago Colombia/Bogota Venezuela/Caracas Ecuador/Quito
Uruguay/Montevideo Australia/Canberra Sudan/Khartoum Somalia/Mogadishu
""".split()
)


def draw(random: Draw, words: Lists, corruption: str) -> PromptPair:  # noqa: ARG001 - there is but one
    """One pair; the wrong answer is the capital of the corrupted prompt's country."""
    (country, capital), (other, others_capital) = random.sample(words["capital"], 2)
    return pair(random.choice(TEMPLATES), {"COUNTRY": country}, {"COUNTRY": other}, f" {capital}", f" {others_capital}")


country_capital = Task(
    "country_capital",
    "which city is the capital of a country?",
    draw,
    words={"capital": Words(CAPITALS, lambda fact: (*spaced(fact[0]), *spaced(fact[1])))},
    corruptions={"other_country": ("COUNTRY",)},
    source="Todd et al. 2023, arXiv 2310.15213; facts: Wikipedia, List of national capitals (2024)",
    circuit="early MLPs enrich the country, late attention carries the capital to the end (Geva et al. 2023)",
    version=2,
)
