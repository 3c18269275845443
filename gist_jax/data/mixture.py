"""Mixtures of sources, whose examples training draws in exact proportions."""

import dataclasses
import math
import sys
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any

import grain

from gist_jax.data.fields import Example

FINEST = 100_000  # examples after which a mixture repeats the order of its parts, at most


@dataclasses.dataclass(frozen=True, repr=False)
class Mixture:
    """Splits of several sources one after another, and the shares in which training draws them."""

    parts: tuple[Any, ...]  # Examples, or a TokenCache of them
    weights: tuple[Fraction, ...]  # which make up 1, or less where not all sources have the split
    fingerprints: tuple[str, ...]  # of the sources that the parts are from

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def __getitem__(self, index: int) -> Example:
        for part in self.parts:
            if 0 <= index < len(part):
                return part[index]
            index -= len(part)
        raise IndexError(f"there are {len(self)} examples")

    def __iter__(self) -> Iterator[Example]:
        return (example for part in self.parts for example in part)


class Selection(grain.transforms.DatasetSelectionMap):
    """Which part an example of an endless mixture is from, and its number in that part.

    Of the first so many examples, however many, each part has its share to less than one example: the
    part is chosen that must come soonest for that (R. Tijdeman, "The chairman assignment problem",
    1980).
    """

    def __init__(self, shares: Sequence[Fraction]):
        """Takes the shares of two or more parts, which make up 1."""
        period = math.lcm(*(share.denominator for share in shares))
        self._counts = [int(share * period) for share in shares]
        slack = Fraction(1, 2 * len(shares) - 2)
        drawn = [0] * len(shares)
        self._order: list[tuple[int, int]] = []
        for n in range(1, period + 1):
            due = [share * n - count for share, count in zip(shares, drawn, strict=True)]
            part = min(
                (i for i, x in enumerate(due) if x >= slack),
                key=lambda i: (1 - slack - due[i]) / shares[i],
            )
            self._order.append((part, drawn[part]))
            drawn[part] += 1

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: int) -> tuple[int, int]:
        period, place = divmod(index, len(self._order))
        part, number = self._order[place]
        return part, period * self._counts[part] + number
