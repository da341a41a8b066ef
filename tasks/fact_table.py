"""Facts for `fact_retrieval`: for each kind the templates, a source to look the facts up, and subjects with answers.

No answer occurs twice in a kind, so that the right answer for one subject is wrong for every other.
"""

# "subject: answer", separated by commas
ELEMENTS = """
gold: Au, silver: Ag, iron: Fe, copper: Cu, lead: Pb, tin: Sn, mercury: Hg, sodium: Na, helium: He, neon: Ne, zinc: Zn,
calcium: Ca, nickel: Ni, aluminium: Al, silicon: Si, lithium: Li, chlorine: Cl, cobalt: Co, argon: Ar, magnesium: Mg,
titanium: Ti, platinum: Pt, manganese: Mn, radon: Rn, barium: Ba, bromine: Br
"""
LANGUAGES = """
France: French, Germany: German, Japan: Japanese, Italy: Italian, Russia: Russian, Spain: Spanish, Portugal: Portuguese,
Poland: Polish, Sweden: Swedish, Norway: Norwegian, Denmark: Danish, Finland: Finnish, Greece: Greek, Turkey: Turkish,
Hungary: Hungarian, Thailand: Thai, Iran: Persian, Israel: Hebrew, Egypt: Arabic, China: Chinese,
Vietnam: Vietnamese, Iceland: Icelandic, Bulgaria: Bulgarian, Romania: Romanian, England: English
"""
CURRENCIES = """
Japan: yen, India: rupee, Russia: rouble, Poland: zloty, Switzerland: franc, Mexico: peso, Israel: shekel,
Canada: dollar, Germany: euro, England: pound, Turkey: lira, Thailand: baht, China: yuan, Kuwait: dinar,
Sweden: krona, Nigeria: naira, Brazil: real, Iran: rial
"""
AUTHORS = """
"Hamlet": Shakespeare, "Oliver Twist": Dickens, "Emma": Austen, "War and Peace": Tolstoy, "Faust": Goethe,
"Ulysses": Joyce, "The Republic": Plato, "The Odyssey": Homer, "Candide": Voltaire, "The Trial": Kafka,
"Animal Farm": Orwell, "Paradise Lost": Milton, "Brave New World": Huxley, "Principia": Newton, "Capital": Marx,
"The Prince": Machiavelli, "Leviathan": Hobbes, "The Time Machine": Wells, "Frankenstein": Shelley, "The Raven": Poe,
"Dracula": Stoker, "The Hobbit": Tolkien, "On the Origin of Species": Darwin, "The Aeneid": Virgil
"""
YOUNG = """
dog: puppy, cat: kitten, cow: calf, horse: foal, sheep: lamb, chicken: chick, duck: duckling, frog: tadpole, bear: cub,
goat: kid, deer: fawn, kangaroo: joey, pig: piglet, goose: gosling
"""
COLORS = """
grass: green, snow: white, the sun: yellow, the sky: blue, mud: brown, a carrot: orange, a strawberry: red,
a flamingo: pink, a raven: black, an elephant: gray, an eggplant: purple
"""
BODY = """
see: eyes, hear: ears, smell: nose, walk: feet, clap: hands, speak: mouth, think: brain
"""
WORKPLACES = """
teacher: school, doctor: hospital, cook: kitchen, gardener: garden, pilot: plane, baker: bakery, judge: court,
mechanic: garage, zookeeper: zoo, shopkeeper: store, ranger: forest
"""
PRODUCTS = """
cow: milk, bee: honey, hen: eggs, sheep: wool, baker: bread, tailor: clothes, spider: webs, poet: poems,
painter: pictures, cobbler: shoes
"""
# kind -> templates, source, facts
FACTS = {
    "symbol of an element": (
        (
            "The chemical symbol for {SUBJECT} is",
            "Chemists write {SUBJECT} as",
            "The symbol of the element {SUBJECT} is",
        ),
        "Wikipedia, List of chemical elements",
        ELEMENTS,
    ),
    "language": (
        (
            "Most people in {SUBJECT} speak",
            "The main language of {SUBJECT} is",
            "In the schools of {SUBJECT}, lessons are in",
        ),
        "Wikipedia, List of official languages by country and territory",
        LANGUAGES,
    ),
    "currency": (
        (
            "The currency of {SUBJECT} is the",
            "In {SUBJECT}, people pay with the",
            "The money of {SUBJECT} is called the",
        ),
        "Wikipedia, List of circulating currencies",
        CURRENCIES,
    ),
    "author": (
        (
            "{SUBJECT} was written by the famous",
            "The author of {SUBJECT} is the great",
            "The writer of {SUBJECT} is known as",
        ),
        "Wikipedia, the article on each work",
        AUTHORS,
    ),
    "young animal": (
        ("A baby {SUBJECT} is called a", "A young {SUBJECT} is a", "The {SUBJECT} had a baby. The baby was a little"),
        "Wikipedia, List of animal names",
        YOUNG,
    ),
    "color": (
        ("The color of {SUBJECT} is", "What color is {SUBJECT}? It is", "The usual color of {SUBJECT} is"),
        "common knowledge; Wikipedia, the articles on the colors",
        COLORS,
    ),
    "part of the body": (
        ("We {SUBJECT} with our", "People {SUBJECT} with their", "To {SUBJECT}, you use your"),
        "common knowledge; Wikipedia, Human body",
        BODY,
    ),
    "place of work": (
        ("The {SUBJECT} works in the", "A {SUBJECT} usually works in a", "You can find a {SUBJECT} in the"),
        "common knowledge; Wikipedia, the article on each occupation",
        WORKPLACES,
    ),
    "product": (
        ("A {SUBJECT} makes", "Every {SUBJECT} makes", "From a {SUBJECT} we get"),
        "common knowledge; Wikipedia, the article on each animal or occupation",
        PRODUCTS,
    ),
}
