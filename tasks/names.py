"""First names common in English; most are one token in large vocabularies, a few in small ones."""

FEMALE = tuple(
    """
Mary Anna Lily Lucy Sue Mia Amy Emma Sarah Laura Alice Jane Kate Rose Ruth Jessica Jennifer Linda Susan Karen
Lisa Nancy Emily Michelle Amanda Melissa Rebecca Sharon Julia Olivia Claire Helen Diana Grace Rachel Maria
Heather Caroline Christine Andrea Nicole Samantha Victoria Elizabeth Patricia Barbara Margaret Sandra Ashley
Donna Carol Stephanie Kelly Christina Joan Katie Erin Ellen Sophie Charlotte Hannah Molly Lauren Allison Tina
Ella Martha Rita
""".split()
)
MALE = tuple(
    """
John Tom Ben Tim Max Sam Jack Bob Joe James David Paul Mark Peter Daniel Robert Michael William Richard Thomas
Charles Christopher Matthew Anthony Steven Andrew Kenneth Kevin Brian George Edward Ronald Timothy Jason Jeffrey
Ryan Jacob Gary Nicholas Eric Jonathan Stephen Larry Justin Scott Brandon Benjamin Samuel Gregory Frank
Alexander Patrick Raymond Dennis Jerry Tyler Aaron Adam Nathan Henry Douglas Zachary Kyle Walter Ethan Jeremy
Carl Roger Fred
""".split()
)
NAMES = FEMALE + MALE
