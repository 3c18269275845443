"""What a family of instructions is: wordings, arguments, inputs, and the rule of its outputs.

A family also says which of its instructions are held out of training. The rule is stable (CRC-32
of the text, never Python's salted `hash`), so that no training run can ever draw them.
"""

import itertools
import random
import string
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from gist_jax.data.instructions.wordings import FRAMES, WORDINGS
from gist_jax.data.instructions.words import FORMS, HELD_OUT_NOUNS

# Families with fewer combinations of arguments than this hold none out: too few would be left.
MIN_COMBINATIONS = 8
# One combination of arguments in this many is held out.
HOLD_OUT_EVERY = 10

Arguments = Mapping[str, str]


def stable_hash(text: str) -> int:
    """A hash that is the same in every process and on every machine."""
    return zlib.crc32(text.encode())


@dataclass(frozen=True)
class Family:
    """Instructions that differ in their wording and their arguments only.

    `fields` are the values of each argument; the wordings of that name in WORDINGS are templates
    over them. `answer(words, arguments)` is the output for an input, `inputs(rng, arguments)`
    draws an input for which it is defined.
    """

    name: str
    weight: float
    fields: Mapping[str, tuple[str, ...]]
    answer: Callable[[list[str], Arguments], list[str]] = field(repr=False)
    inputs: Callable[[random.Random, Arguments], list[str]] = field(repr=False)

    @cached_property
    def train_wordings(self) -> tuple[tuple[str, ...], ...]:
        """The wordings of training, grouped: one group per clause (its frames) or sentence."""
        lines = [line for line in self._lines if not line.startswith("*")]
        return tuple(
            tuple(frame % line for frame in FRAMES) if line[0].islower() else (line,) for line in lines
        )

    @cached_property
    def held_out_wordings(self) -> tuple[str, ...]:
        """The wordings that training never uses."""
        return tuple(line[1:].strip() for line in self._lines if line.startswith("*"))

    @property
    def _lines(self) -> list[str]:
        return [line.strip() for line in WORDINGS[self.name].strip().splitlines()]

    @cached_property
    def _arguments_by_use(self) -> dict[str, tuple[Arguments, ...]]:
        """All arguments, by use: "train", "combination" or "value" (the latter two held out)."""
        combinations: list[Arguments] = []
        with_held_out_value: list[Arguments] = []
        for values in itertools.product(*self.fields.values()):
            if len(set(values)) < len(values):
                continue  # "say red if ..., otherwise red" is no instruction
            arguments = dict(zip(self.fields, values, strict=True))
            unseen = not HELD_OUT_NOUNS.isdisjoint(values)
            (with_held_out_value if unseen else combinations).append(arguments)
        held_out = 0
        if len(combinations) >= MIN_COMBINATIONS:
            held_out = max(1, len(combinations) // HOLD_OUT_EVERY)
        combinations.sort(key=lambda arguments: stable_hash(f"{self.name} {arguments}"))
        return {
            "train": tuple(combinations[held_out:]),
            "combination": tuple(combinations[:held_out]),
            "value": tuple(with_held_out_value),
        }

    @property
    def train_arguments(self) -> tuple[Arguments, ...]:
        """The arguments that training draws from."""
        return self._arguments_by_use["train"]

    @property
    def held_out_combinations(self) -> tuple[Arguments, ...]:
        """Arguments never together in training, though each of them is known from elsewhere."""
        return self._arguments_by_use["combination"]

    @property
    def held_out_values(self) -> tuple[Arguments, ...]:
        """Arguments with a noun that no training instruction of any family contains."""
        return self._arguments_by_use["value"]

    def instruction(self, wording: str, arguments: Arguments) -> str:
        """The text of an instruction: the wording with its arguments, as a sentence."""
        forms = dict(arguments)
        for name, value in arguments.items():
            forms.update(FORMS.get(name, {}).get(value, {}))
        text = wording.format_map(forms)
        return text[0].upper() + text[1:]

    def template_words(self) -> set[str]:
        """The words of all wordings, arguments left out."""
        wordings = (*itertools.chain(*self.train_wordings), *self.held_out_wordings)
        literals = (part[0] for wording in wordings for part in string.Formatter().parse(wording))
        text = " ".join(literals).lower()
        return set("".join(c if c.isalpha() else " " for c in text).split())
