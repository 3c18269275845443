"""The table of the families of instructions.

Every family is one that a transformer of two layers can learn: saying given words, copying a
position, looking a word up in a map, choosing by category. An output depends on the arguments in
the instruction (which word, position, number, category), so that a model that sees the input
alone scores low; families that copy most of the input carry about a fifth of the weight.
The wordings are in `wordings`, by the names of the families.
"""

from gist_jax.data.instructions import rules
from gist_jax.data.instructions.family import Family
from gist_jax.data.instructions.words import CATEGORIES, COLOURS, MAPS, NOUNS, NUMBERS, POSITIONS

_CATEGORIES, _POSITIONS, _KINDS = tuple(CATEGORIES), tuple(POSITIONS), tuple(MAPS)

FAMILIES = (
    # The input does not matter.
    Family(
        name="always",
        weight=6,
        fields={"word": NOUNS},
        answer=lambda words, arguments: [arguments["word"]],
        inputs=rules.anything,
    ),
    Family(
        name="say_times",
        weight=6,
        fields={"word": NOUNS, "number": ("two", "three", "four")},
        answer=lambda words, arguments: [arguments["word"]] * rules.times(arguments),
        inputs=rules.anything,
    ),
    Family(
        name="say_pair",
        weight=5,
        fields={"word": NOUNS, "colour": COLOURS},
        answer=lambda words, arguments: [arguments["word"], arguments["colour"]],
        inputs=rules.anything,
    ),
    # Words of the input by their position.
    Family(
        name="pick",
        weight=7,
        fields={"position": _POSITIONS},
        answer=lambda words, arguments: [rules.position(words, arguments)],
        inputs=rules.anything,
    ),
    Family(
        name="repeat_pick",
        weight=6,
        fields={"position": _POSITIONS, "number": ("two", "three")},
        answer=lambda words, arguments: [rules.position(words, arguments)] * rules.times(arguments),
        inputs=rules.anything,
    ),
    Family(
        name="say_and_pick",
        weight=6,
        fields={"word": NOUNS, "position": ("first", "second", "last")},
        answer=lambda words, arguments: [arguments["word"], rules.position(words, arguments)],
        inputs=rules.anything,
    ),
    # Word by word.
    Family(
        name="fill",
        weight=5,
        fields={"word": NOUNS},
        answer=lambda words, arguments: [arguments["word"]] * len(words),
        inputs=rules.anything,
    ),
    Family(
        name="map_all",
        weight=9,
        fields={"kind": _KINDS},
        answer=lambda words, arguments: [MAPS[arguments["kind"]][word] for word in words],
        inputs=rules.mappable,
    ),
    Family(
        name="map_one",
        weight=7,
        fields={"kind": _KINDS, "position": _POSITIONS},
        answer=lambda words, arguments: [MAPS[arguments["kind"]][rules.position(words, arguments)]],
        inputs=rules.mappable,
    ),
    # By category. "find" is the simplest of them, and what the others build upon.
    Family(
        name="find",
        weight=8,
        fields={"category": _CATEGORIES},
        answer=rules.of_category,
        inputs=rules.one_of_category,
    ),
    Family(
        name="keep",
        weight=8,
        fields={"category": _CATEGORIES},
        answer=rules.of_category,
        inputs=rules.partly_of_category,
    ),
    Family(
        name="drop",
        weight=4,
        fields={"category": _CATEGORIES},
        answer=lambda words, arguments: rules.of_category(words, arguments, wanted=False),
        inputs=rules.partly_of_category,
    ),
    Family(
        name="count",
        weight=3,
        fields={},
        answer=lambda words, arguments: [NUMBERS[len(words)]],
        inputs=rules.anything,
    ),
    # Yes or no, one or the other.
    Family(
        name="contains",
        weight=4,
        fields={"word": NOUNS},
        answer=lambda words, arguments: ["yes" if arguments["word"] in words else "no"],
        inputs=rules.maybe_containing,
    ),
    Family(
        name="conditional",
        weight=5,
        fields={"category": _CATEGORIES, "colour": COLOURS, "other": COLOURS},
        answer=lambda words, arguments: [
            arguments["colour" if rules.first_is(words, arguments) else "other"]
        ],
        inputs=rules.maybe_starting_with,
    ),
    # The whole input again, changed.
    Family(
        name="reverse",
        weight=4,
        fields={},
        answer=lambda words, arguments: words[::-1],
        inputs=rules.at_most_four,
    ),
    Family(
        name="add",
        weight=6,
        fields={"word": NOUNS, "place": ("before", "after")},
        answer=rules.added,
        inputs=rules.anything,
    ),
    Family(
        name="between",
        weight=4,
        fields={"word": NOUNS},
        answer=rules.between,
        inputs=rules.at_most_four,
    ),
    Family(
        name="replace",
        weight=5,
        fields={"word": NOUNS, "position": _POSITIONS},
        answer=rules.replaced,
        inputs=rules.anything,
    ),
)
