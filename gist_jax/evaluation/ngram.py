"""N-gram models of a run's text: what a loss in nats per byte is to be set beside.

Interpolated Kneser-Ney smoothing with one discount for each order (Kneser and Ney, "Improved backing-off
for m-gram language modeling", 1995; the discount and the interpolation as in Chen and Goodman, "An
empirical study of smoothing techniques for language modeling", 1999, section 2.7).
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from gist_jax.data.rows import Batch


class _Order(NamedTuple):
    """Counts of n-grams of one length; contexts are n-grams without their last token."""

    keys: np.ndarray  # int64 [M], ascending: an n-gram's tokens as the digits of a number
    counts: np.ndarray  # int64 [M]
    contexts: np.ndarray  # int64 [H], ascending
    totals: np.ndarray  # int64 [H]: the sum of the counts after a context
    kinds: np.ndarray  # int64 [H]: of how many tokens that is the sum
    discount: float


class NGram:
    """An n-gram model of token ids."""

    def __init__(self, texts: Iterable[np.ndarray], order: int, vocab_size: int):
        """Counts.

        Args:
          texts: ids of texts, int `[T]` each. N-grams do not reach from one into another.
          order: the longest n-gram, so long that `(vocab_size + 1) ** order` fits into 63 bits.
        """
        self.order, self.vocab_size, self._base = order, vocab_size, vocab_size + 1
        if self._base**order >= 2**63:
            raise ValueError(f"{order}-grams of {vocab_size} tokens do not fit into 64 bits")
        keys = np.concatenate([self._keys(text, order) for text in texts])
        keys, counts = np.unique(keys, return_counts=True)
        self._orders = [self._counted(keys, counts)]
        for n in range(order - 1, 0, -1):
            # Of shorter ones it counts after how many different tokens they stand.
            keys, counts = np.unique(keys % self._base**n, return_counts=True)
            self._orders.insert(0, self._counted(keys, counts))

    def _keys(self, text: np.ndarray, n: int) -> np.ndarray:
        """The n-gram that ends with each token, as a number; before the first there are blanks."""
        blanks = np.full(n - 1, self.vocab_size, np.int64)
        padded = np.concatenate([blanks, text.astype(np.int64)])
        keys = np.zeros(len(text), np.int64)
        for i in range(n):
            keys = keys * self._base + padded[i : i + len(text)]
        return keys

    def _counted(self, keys: np.ndarray, counts: np.ndarray) -> _Order:
        contexts, places = np.unique(keys // self._base, return_inverse=True)
        totals = np.bincount(places, weights=counts).astype(np.int64)
        once, twice = np.sum(counts == 1), np.sum(counts == 2)
        discount = float(once / max(once + 2 * twice, 1))
        return _Order(keys, counts, contexts, totals, np.bincount(places), discount)

    def probabilities(self, text: np.ndarray) -> np.ndarray:
        """The probability of every token of a text after those before it: float64 `[T]`."""
        p = np.full(len(text), 1 / self.vocab_size)
        for n, counted in enumerate(self._orders, 1):
            keys = self._keys(text, n)
            count = _looked_up(counted.keys, counted.counts, keys)
            total = _looked_up(counted.contexts, counted.totals, keys // self._base)
            kinds = _looked_up(counted.contexts, counted.kinds, keys // self._base)
            seen = np.maximum(count - counted.discount, 0) + counted.discount * kinds * p
            p = np.where(total > 0, seen / np.maximum(total, 1), p)
        return p


def _looked_up(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The value of every wanted key, 0 where it is not there."""
    places = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[places] == wanted, values[places], 0)


def texts_of(batch: Batch) -> list[tuple[np.ndarray, np.ndarray]]:
    """The texts in the rows of a decoder's batch, which may be packed: pairs of ids and weights.

    Both have one entry for every token that is predicted, int64 and float32 `[T]`.
    """
    found = []
    for segment, targets, weights in zip(
        batch["segment"], batch["targets"], batch["weights"], strict=True
    ):
        for number in range(1, int(segment.max(initial=0)) + 1):
            of_text = segment == number
            found.append((targets[of_text].astype(np.int64), weights[of_text]))
    return found
