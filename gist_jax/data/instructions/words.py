"""The words of the instruction corpus: a closed lexicon and the maps between its words.

The lexicon is small on purpose: a model trained from scratch for a minute or two has to learn
every word and every fact (plural, category, first letter, opposite) from the examples alone.
"""

# Ten nouns a category. Every noun occurs in inputs, and as an argument of instructions.
CATEGORIES = {
    "animal": ("cat", "dog", "horse", "cow", "lion", "tiger", "bear", "rabbit", "fox", "wolf"),
    "food": (
        "apple", "cake", "egg", "carrot", "lemon", "onion", "pizza", "potato", "tomato", "cookie",
    ),
    "colour": (
        "red", "blue", "green", "yellow", "black", "white", "brown", "purple", "pink", "grey",
    ),
    "tool": (
        "hammer", "saw", "drill", "wrench", "shovel", "axe", "knife", "brush", "ladder", "rake",
    ),
    "place": (
        "school", "park", "church", "bank", "library", "hotel", "museum", "beach", "market",
        "farm",
    ),
    "vehicle": (
        "car", "bus", "train", "boat", "truck", "bicycle", "ship", "van", "taxi", "tractor",
    ),
}  # fmt: skip

NOUNS = tuple(noun for nouns in CATEGORIES.values() for noun in nouns)
COLOURS = CATEGORIES["colour"]

# One noun a category that no training instruction contains (inputs and outputs do).
HELD_OUT_NOUNS = frozenset({"rabbit", "lemon", "grey", "ladder", "museum", "tractor"})

_OPPOSITES = """big small, hot cold, old new, fast slow, high low, hard soft, light dark, wet dry,
full empty, open closed, rich poor, happy sad, clean dirty, loud quiet"""
OPPOSITE = {
    word: other
    for pair in _OPPOSITES.split(",")
    for word, other in (pair.split(), reversed(pair.split()))
}
ADJECTIVES = tuple(OPPOSITE)

_IRREGULAR_PLURALS = {
    "wolf": "wolves", "fox": "foxes", "potato": "potatoes", "tomato": "tomatoes",
    "wrench": "wrenches", "knife": "knives", "brush": "brushes", "church": "churches",
    "library": "libraries", "beach": "beaches", "bus": "buses",
}  # fmt: skip
# Colours have no plural here: inputs to be put in the plural contain none.
PLURAL = {noun: _IRREGULAR_PLURALS.get(noun, noun + "s") for noun in NOUNS if noun not in COLOURS}
CATEGORY = {noun: category for category, nouns in CATEGORIES.items() for noun in nouns}
FIRST_LETTER = {noun: noun[0] for noun in NOUNS}

# The lexical maps an instruction can name. The keys of a map are the inputs it is defined for.
MAPS = {
    "opposite": OPPOSITE,
    "plural": PLURAL,
    "category": CATEGORY,
    "first letter": FIRST_LETTER,
}

POSITIONS = {"first": 0, "second": 1, "third": 2, "last": -1}
NUMBERS = ("zero", "one", "two", "three", "four", "five")

# How an argument value is written besides itself: field -> value -> further template fields.
FORMS = {
    "category": {
        category: {
            "categories": category + "s",
            "a_category": ("an " if category == "animal" else "a ") + category,
        }
        for category in CATEGORIES
    },
    "kind": {
        "opposite": {"kinds": "opposites"},
        "plural": {"kinds": "plurals"},
        "category": {"kinds": "categories"},
        "first letter": {"kinds": "first letters"},
    },
    "number": {
        "two": {"times": "twice"},
        "three": {"times": "three times"},
        "four": {"times": "four times"},
    },
    "place": {"before": {"end": "start"}, "after": {"end": "end"}},
}


def lexicon() -> set[str]:
    """Every word that can be an argument, a part of an input or a part of an output."""
    words = {*NOUNS, *ADJECTIVES, *POSITIONS, *NUMBERS, "yes", "no"}
    for name, lexical_map in MAPS.items():
        words.update(name.split(), lexical_map.values())
    for values in FORMS.values():
        for value, forms in values.items():
            words.update(value.split(), *(form.split() for form in forms.values()))
    return words
