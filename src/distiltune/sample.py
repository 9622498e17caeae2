"""Generates review-like texts, so that the pipeline runs without a network.

A bag of words does not solve them: an adjective says the opposite when negated, which
happens to three in ten, and a concession ("although ...") praises what the review pans.
"""

import random
from collections.abc import Iterator

from distiltune.artifacts import DatasetInfo

SAMPLE_INFO = DatasetInfo(dataset="sample", label_names=("negative", "positive"))

ASPECTS = (
    "acting", "camera work", "casting", "cinematography", "dialogue", "direction", "editing",
    "ending", "final act", "humour", "lead performance", "music", "opening scene", "pacing", "plot",
    "score", "screenplay", "script", "second half", "set design", "sound mix", "soundtrack",
    "story", "supporting cast",
)  # fmt: skip
ADJECTIVES = (
    (
        "awful", "bland", "boring", "clumsy", "dreadful", "dull", "feeble", "forgettable", "lazy",
        "lifeless", "messy", "painful", "pointless", "predictable", "silly", "stale", "tedious",
        "terrible", "ugly", "weak",
    ),
    (
        "beautiful", "brilliant", "charming", "clever", "convincing", "delightful", "elegant",
        "engaging", "excellent", "fresh", "funny", "gripping", "impressive", "lovely", "memorable",
        "moving", "original", "powerful", "sharp", "superb",
    ),
)  # fmt: skip
VERDICTS = (
    (
        "a waste of two hours", "a disappointment", "a chore to sit through",
        "one to avoid", "a failure",
    ),
    (
        "a joy from start to finish", "a triumph", "time well spent", "one to remember",
        "a treat",
    ),
)  # fmt: skip
NEGATIONS = ("not", "never", "hardly", "far from", "anything but", "by no means")
DEGREES = ("", "", "", "really", "quite", "so", "truly", "rather")
VERBS = ("is", "was", "felt", "seemed", "looked")
STARTS = (
    "",
    "",
    "",
    "I must say that",
    "To me,",
    "In the end",
    "For what it is worth,",
    "Honestly,",
)
CONCESSIONS = ("although", "even if", "while", "though")
NEUTRAL = (
    "I saw it on a {day} with {company}.",
    "It runs for about {minutes} minutes.",
    "The film is set in {place}.",
    "It follows {person} who returns to {place} after {years} years.",
    "The director made {years} films before this one.",
    "We had seats in row {row}.",
    "{company_up} had read the book, I had not.",
    "There is a scene on a train, and one in {place}.",
)
NEGATED_SHARE = 0.3
DAYS = ("Monday", "Tuesday", "Friday", "Saturday", "Sunday")
COMPANY = ("my sister", "an old friend", "my parents", "two colleagues", "my neighbour")
PLACES = ("Lisbon", "a small harbour town", "the desert", "Glasgow", "a lighthouse", "Kyoto")
PEOPLE = ("a nurse", "a retired pilot", "a young teacher", "a cook", "a widowed judge")


def generate_reviews(num_reviews: int, seed: int) -> tuple[Iterator[str], bytearray]:
    """Generate texts and their labels, 1 for positive, as many of each (or one more).

    The same arguments give the same texts on every machine.

    Returns:
        The texts, each made when it is asked for, and the labels, a byte each.
    """
    generator = random.Random(seed)  # noqa: S311 (no secret depends on it)
    labels = bytearray(i % 2 for i in range(num_reviews))
    generator.shuffle(labels)
    return (_review(generator, label) for label in labels), labels


def _review(generator: random.Random, label: int) -> str:
    sentences = [_sentence(generator, label) for _ in range(generator.randint(1, 2))]
    if generator.random() < 0.3:
        sentences.append(_verdict(generator, label))
    for _ in range(generator.randint(0, 1)):
        sentences.insert(generator.randint(0, len(sentences)), _neutral(generator))
    return " ".join(sentences)


def _sentence(generator: random.Random, label: int) -> str:
    clause = _clause(generator, label)
    if generator.random() < 0.3:
        concession = f"{generator.choice(CONCESSIONS)} {_clause(generator, 1 - label)}"
        clause = generator.choice((f"{concession}, {clause}", f"{clause}, {concession}"))
    elif generator.random() < 0.3:
        clause = f"{clause}, and {_clause(generator, label)}"
    text = f"{generator.choice(STARTS)} {clause}".strip()
    return f"{text[0].upper()}{text[1:]}{generator.choice(('.', '.', '.', '!'))}"


def _clause(generator: random.Random, polarity: int) -> str:
    negated = generator.random() < NEGATED_SHARE
    words = [
        "the",
        generator.choice(ASPECTS),
        generator.choice(VERBS),
        generator.choice(NEGATIONS) if negated else generator.choice(DEGREES),
        generator.choice(ADJECTIVES[1 - polarity if negated else polarity]),
    ]
    return " ".join(word for word in words if word)


def _verdict(generator: random.Random, label: int) -> str:
    if generator.random() < NEGATED_SHARE:
        return f"It was {generator.choice(NEGATIONS)} {generator.choice(VERDICTS[1 - label])}."
    return f"It was {generator.choice(VERDICTS[label])}."


def _neutral(generator: random.Random) -> str:
    company = generator.choice(COMPANY)
    return generator.choice(NEUTRAL).format(
        day=generator.choice(DAYS),
        company=company,
        company_up=company[0].upper() + company[1:],
        minutes=generator.randint(80, 160),
        place=generator.choice(PLACES),
        person=generator.choice(PEOPLE),
        years=generator.randint(2, 20),
        row=generator.randint(1, 30),
    )
