"""The splits of the instruction corpus, as random-access sources.

`Corpus(split)[index]` depends on the split, the seed and the index alone; nothing is stored, so a
source costs nothing to pickle and any number of workers may read it (Grain does).

Which split an example belongs to is decided by its text:

- an instruction is a training instruction or held out: see `family.Family`;
- a training instruction with an input is a validation pair or a training pair: see
  `is_validation_pair`. `validation_seen` consists of validation pairs, `train` of training pairs;
- `validation_human` is written by hand, in wordings that no family has.
"""

import functools
import importlib.resources
import itertools
import json
import operator
import random
from collections.abc import Iterator

from tokenizers import Tokenizer

from gist_jax.data.instructions.families import FAMILIES
from gist_jax.data.instructions.family import Arguments, Family, stable_hash

SPLITS = ("train", "validation_seen", "validation_unseen", "validation_human")

TOKENIZER_FILE = "tokenizer.json"

TRAIN_LENGTH = 1_000_000
VALIDATION_LENGTH = 500

# The kinds of unseen instructions, in turn: two fifths each are new wordings and new combinations
# of arguments, one fifth has an argument that training never uses as one (the hardest).
UNSEEN_KINDS = ("wording", "combination", "wording", "combination", "value")

# One (instruction, input) pair in this many is kept for validation.
VALIDATION_PAIR_EVERY = 20


def is_validation_pair(instruction: str, input_: str) -> bool:
    """Whether a training instruction with this input is kept out of training."""
    return stable_hash(f"{instruction}\n{input_}") % VALIDATION_PAIR_EVERY == 0


def load_tokenizer() -> Tokenizer:
    """The word-level tokenizer of the corpus, as shipped (without `<GIST>`)."""
    return Tokenizer.from_str(_read(TOKENIZER_FILE))


@functools.cache
def human_examples() -> tuple[dict[str, str], ...]:
    """The examples written by hand."""
    return tuple(json.loads(_read("human.json")))


def _read(name: str) -> str:
    return (importlib.resources.files(__package__) / name).read_text(encoding="utf-8")


@functools.cache
def _families(kind: str) -> tuple[tuple[Family, ...], tuple[float, ...]]:
    """The families that have instructions of a kind, and their cumulative weights."""
    having = {
        "combination": lambda family: family.held_out_combinations,
        "value": lambda family: family.held_out_values,
    }.get(kind, lambda family: True)
    families = tuple(family for family in FAMILIES if having(family))
    return families, tuple(itertools.accumulate(family.weight for family in families))


def _draw_instruction(rng: random.Random, kind: str) -> tuple[Family, Arguments, str]:
    """Draws an instruction of a kind: "train" or one of UNSEEN_KINDS."""
    families, cumulative = _families(kind)
    family = rng.choices(families, cum_weights=cumulative)[0]
    held_out = {"combination": family.held_out_combinations, "value": family.held_out_values}
    arguments = rng.choice(held_out.get(kind, family.train_arguments))
    if kind == "wording":
        wording = rng.choice(family.held_out_wordings)
    else:
        wording = rng.choice(rng.choice(family.train_wordings))
    return family, arguments, family.instruction(wording, arguments)


class Corpus:
    """A split as a random-access source of examples.

    An example is a dict of strings: "instruction", "input", "output" and "source", the name of
    the family it comes from ("human" for those written by hand).
    """

    def __init__(self, split: str, seed: int = 0):
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}: use one of {', '.join(SPLITS)}")
        self.split = split
        self.seed = seed

    def __len__(self) -> int:
        if self.split == "validation_human":
            return len(human_examples())
        return TRAIN_LENGTH if self.split == "train" else VALIDATION_LENGTH

    def __iter__(self) -> Iterator[dict[str, str]]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index: int) -> dict[str, str]:
        index = operator.index(index)
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} is not in 0..{len(self) - 1}")
        if self.split == "validation_human":
            return {**human_examples()[index], "source": "human"}

        rng = random.Random(f"{self.seed} {self.split} {index}")
        unseen = self.split == "validation_unseen"
        kind = UNSEEN_KINDS[index % len(UNSEEN_KINDS)] if unseen else "train"
        family, arguments, instruction = _draw_instruction(rng, kind)
        while True:
            words = family.inputs(rng, arguments)
            input_ = " ".join(words)
            wanted = self.split == "validation_seen"
            if unseen or is_validation_pair(instruction, input_) == wanted:
                break
        return {
            "instruction": instruction,
            "input": input_,
            "output": " ".join(family.answer(words, arguments)),
            "source": family.name,
        }

    def __repr__(self) -> str:
        # Grain compares this text when it resumes: it must be the same in every process.
        return f"Corpus(split={self.split!r}, seed={self.seed})"
