"""Longest common subsequences of token lists, a row of the usual table in one integer (Hyyrö, 2004).

ROUGE-L is the length of one between two texts, ROUGE-Lsum counts the tokens of a reference's sentence
that are in one with any sentence of the prediction (Lin, 2004). rouge-score fills its tables cell by
cell in Python, which is nearly all the time that its scores take. These give the same numbers.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence

Tokens = Sequence[str]


def rouge_l(reference: Tokens, prediction: Tokens) -> int:
    """The length of a longest common subsequence."""
    return _length(_rows(reference, prediction)[-1], len(prediction))


def rouge_lsum(reference: Sequence[Tokens], prediction: Sequence[Tokens]) -> int:
    """How many tokens of a reference's sentences are in the union of longest common subsequences with
    those of a prediction; a token counts as often as both texts have it, at most."""
    left_of_reference = Counter(token for sentence in reference for token in sentence)
    left_of_prediction = Counter(token for sentence in prediction for token in sentence)
    hits = 0
    for sentence in reference:
        found = set[int]().union(*(_common(sentence, other) for other in prediction))
        for i in sorted(found):
            token = sentence[i]
            if left_of_reference[token] > 0 and left_of_prediction[token] > 0:
                left_of_reference[token] -= 1
                left_of_prediction[token] -= 1
                hits += 1
    return hits


def _rows(reference: Tokens, prediction: Tokens) -> list[int]:
    """The rows of the table, from that of no token of the reference to that of all.

    Bit j of a row is 0 where the (j + 1)th token of the prediction makes the subsequence longer.
    """
    places: defaultdict[str, int] = defaultdict(int)
    for j, token in enumerate(prediction):
        places[token] |= 1 << j
    everywhere = (1 << len(prediction)) - 1
    rows = [everywhere]
    for token in reference:
        row = rows[-1]
        shared = row & places[token]
        rows.append(((row + shared) | (row - shared)) & everywhere)
    return rows


def _length(row: int, j: int) -> int:
    """The value of a row's table at column j."""
    return j - (row & ((1 << j) - 1)).bit_count()


def _common(reference: Tokens, prediction: Tokens) -> list[int]:
    """Places in the reference of one longest common subsequence: of several, that of rouge-score."""
    rows = _rows(reference, prediction)
    i, j, places = len(reference), len(prediction), []
    while i and j:
        if reference[i - 1] == prediction[j - 1]:
            i, j = i - 1, j - 1
            places.append(i)
        elif _length(rows[i], j - 1) > _length(rows[i - 1], j):
            j -= 1
        else:
            i -= 1
    return places
