"""How the families draw their inputs and compute their outputs.

Inputs are drawn alike for all families, as far as their outputs are defined: an input must not
give away which instruction it belongs to, or a model would not need to read the instruction.
"""

import random
from collections.abc import Collection

from gist_jax.data.instructions.family import Arguments
from gist_jax.data.instructions.words import (
    ADJECTIVES,
    CATEGORIES,
    CATEGORY,
    NOUNS,
    NUMBERS,
    PLURAL,
    POSITIONS,
)


def nouns(
    rng: random.Random,
    category: str | None = None,
    pool: Collection[str] = NOUNS,
    longest: int = 5,
) -> list[str]:
    """3 to `longest` distinct nouns, leaning to one category so that it occurs often."""
    leaning = CATEGORIES[category or rng.choice(tuple(CATEGORIES))]
    length = rng.randint(3, longest)
    words: list[str] = []
    while len(words) < length:
        word = rng.choice(leaning if rng.random() < 0.4 else NOUNS)
        if word not in words and word in pool:
            words.append(word)
    return words


def anything(rng: random.Random, arguments: Arguments, longest: int = 5) -> list[str]:
    """Nouns or, more seldom, adjectives: an input must not give its instruction away."""
    if rng.random() < 0.2:
        return rng.sample(ADJECTIVES, rng.randint(3, longest))
    return nouns(rng, longest=longest)


def at_most_four(rng: random.Random, arguments: Arguments) -> list[str]:
    """A shorter input, for outputs that are longer than it."""
    return anything(rng, arguments, longest=4)


def mappable(rng: random.Random, arguments: Arguments) -> list[str]:
    """Words for which the map named by the instruction is defined."""
    kind = arguments["kind"]
    if kind == "opposite":
        return rng.sample(ADJECTIVES, rng.randint(3, 5))
    return nouns(rng, pool=PLURAL if kind == "plural" else NOUNS)


def partly_of_category(rng: random.Random, arguments: Arguments) -> list[str]:
    """Words of which some, but not all, are of the category."""
    while True:
        words = nouns(rng, arguments["category"])
        if 0 < len(of_category(words, arguments)) < len(words):
            return words


def one_of_category(rng: random.Random, arguments: Arguments) -> list[str]:
    """Words of which exactly one is of the category."""
    while True:
        words = nouns(rng, arguments["category"])
        if len(of_category(words, arguments)) == 1:
            return words


def maybe_containing(rng: random.Random, arguments: Arguments) -> list[str]:
    """Words of which about every second time one is the given word."""
    words = nouns(rng)
    if rng.random() < 0.5 and arguments["word"] not in words:
        words[rng.randrange(len(words))] = arguments["word"]
    return words


def maybe_starting_with(rng: random.Random, arguments: Arguments) -> list[str]:
    """Words of which about every second time the first is of the category."""
    words = nouns(rng, arguments["category"] if rng.random() < 0.5 else None)
    if rng.random() < 0.3:
        words[0] = rng.choice([w for w in CATEGORIES[arguments["category"]] if w not in words])
    return words


def of_category(words: list[str], arguments: Arguments, wanted: bool = True) -> list[str]:
    """The words that are, or with `wanted` false are not, of the category."""
    return [word for word in words if (CATEGORY[word] == arguments["category"]) == wanted]


def position(words: list[str], arguments: Arguments) -> str:
    """The word at the position that the instruction names."""
    return words[POSITIONS[arguments["position"]]]


def first_is(words: list[str], arguments: Arguments) -> bool:
    """Whether the first word is of the category."""
    return CATEGORY[words[0]] == arguments["category"]


def between(words: list[str], arguments: Arguments) -> list[str]:
    """The words with the given word between every two of them."""
    return [w for word in words for w in (arguments["word"], word)][1:]


def replaced(words: list[str], arguments: Arguments) -> list[str]:
    """The words with the given word at the named position."""
    words = list(words)
    words[POSITIONS[arguments["position"]]] = arguments["word"]
    return words


def added(words: list[str], arguments: Arguments) -> list[str]:
    """The words with the given word before or after them."""
    word = [arguments["word"]]
    return word + words if arguments["place"] == "before" else words + word


def times(arguments: Arguments) -> int:
    """How often the instruction wants something said."""
    return NUMBERS.index(arguments["number"])
