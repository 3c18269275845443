"""N-gram models: distributions that sum to 1, the published formula by hand, and texts of rows."""

import itertools
import math

import numpy as np
import pytest

from gist_jax.evaluation.ngram import NGram, texts_of

VOCABULARY = 5
RNG = np.random.default_rng(0)
TEXTS = [RNG.integers(0, VOCABULARY, RNG.integers(1, 9)) for _ in range(40)]


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_probabilities_sum_to_one(order):
    model = NGram(TEXTS, order, VOCABULARY)
    for context in ([], [0], [1, 4], [2, 2, 2, 2, 3]):
        each = [model.probabilities(np.array([*context, w]))[-1] for w in range(VOCABULARY)]
        assert sum(each) == pytest.approx(1) and min(each) > 0


def by_hand(texts, history, token):
    """A bigram model, written down from the formulas with dictionaries."""
    pairs, counts = {}, {}
    for text in texts:
        for pair in itertools.pairwise([VOCABULARY, *text.tolist()]):
            pairs[pair] = pairs.get(pair, 0) + 1
    for _, second in pairs:
        counts[second] = counts.get(second, 0) + 1

    def smoothed(table, key, total, kinds, below):
        once, twice = (sum(1 for n in table.values() if n == many) for many in (1, 2))
        discount = once / max(once + 2 * twice, 1)
        return (max(table.get(key, 0) - discount, 0) + discount * kinds * below) / total

    p = smoothed(counts, token, sum(counts.values()), len(counts), 1 / VOCABULARY)
    of_history = {pair: n for pair, n in pairs.items() if pair[0] == history}
    if not of_history:
        return p
    discounts = pairs  # of all bigrams, not of this history alone
    once, twice = (sum(1 for n in discounts.values() if n == many) for many in (1, 2))
    discount = once / max(once + 2 * twice, 1)
    left = max(of_history.get((history, token), 0) - discount, 0) + discount * len(of_history) * p
    return left / sum(of_history.values())


def test_a_bigram_model_by_hand():
    texts = [text for text in TEXTS if 3 not in text[:-1]]  # so that one history was never seen
    model = NGram(texts, 2, VOCABULARY)
    for text in ([1], [0, 1, 2], [3, 4, 4], [2, 0, 3, 1]):
        expected = [by_hand(texts, *pair) for pair in itertools.pairwise([VOCABULARY, *text])]
        np.testing.assert_allclose(model.probabilities(np.array(text)), expected, rtol=1e-12)


def test_longer_contexts_help_where_there_is_order():
    text = np.tile(np.array([0, 1, 0, 2]), 50)
    nats = [-np.log(NGram([text], n, VOCABULARY).probabilities(text)).mean() for n in (1, 2, 3)]
    assert nats[0] == pytest.approx(1.5 * math.log(2), abs=0.05)
    assert nats[1] == pytest.approx(0.5 * math.log(2), abs=0.05)
    assert nats[2] < 0.05
    with pytest.raises(ValueError, match="do not fit"):
        NGram([text], 5, 10_000)


def test_texts_of_packed_rows():
    batch = {
        "segment": np.array([[1, 1, 2, 2, 2, 0], [1, 1, 1, 1, 1, 1]]),
        "targets": np.arange(12).reshape(2, 6),
        "weights": np.array([[0, 1, 1, 1, 1, 0], [1] * 6], np.float32),
    }
    found = [(ids.tolist(), weights.tolist()) for ids, weights in texts_of(batch)]
    assert found == [([0, 1], [0, 1]), ([2, 3, 4], [1, 1, 1]), ([6, 7, 8, 9, 10, 11], [1] * 6)]
