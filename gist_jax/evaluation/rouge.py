"""ROUGE and exact match, in percent, as the paper reports them."""

import functools
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from gist_jax.evaluation.lcs import rouge_l, rouge_lsum
from gist_jax.training.config import METRICS

# All there are; training's evaluation has METRICS. ROUGE-Lsum takes every line of a text for a sentence.
ALL_METRICS = ("rouge1", "rouge2", "rougeL", "rougeLsum", "exact_match")


def score(records: Sequence[Mapping[str, str]]) -> dict[str, float]:
    """Means over records: F-measures of ROUGE-1, -2 and -L with stemming, and exact match.

    Args:
      records: with a prediction and a reference each.

    The settings are those of the published evaluation (arXiv 2304.08467).
    """
    values = score_rows(records)
    return {name: float(values[:, ALL_METRICS.index(name)].mean()) for name in METRICS}


def score_rows(
    records: Sequence[Mapping[str, str]], tick: Callable[[], object] = lambda: None
) -> np.ndarray:
    """The metrics of every record: percent, float64 `[N, 5]` in the order of ALL_METRICS.

    Args:
      tick: called after every record.
    """
    values = np.empty((len(records), len(ALL_METRICS)))
    for i, record in enumerate(records):
        prediction, reference = record["prediction"], record["reference"]
        exact = float(prediction.strip() == reference.strip())
        values[i] = [*rouge(reference, prediction), exact]
        tick()
    return 100 * values


def rouge(reference: str, prediction: str) -> tuple[float, float, float, float]:
    """F-measures of ROUGE-1, -2, -L and -Lsum with stemming, as rouge-score has them."""
    from rouge_score.scoring import fmeasure

    scorer, tokens = _scorer()
    ngrams = scorer.score(reference, prediction)

    def f(hits: int, ours: int, theirs: int) -> float:
        return float(fmeasure(hits / ours, hits / theirs)) if ours and theirs else 0.0

    whole = tokens(reference), tokens(prediction)
    lengths = tuple(map(len, whole))
    long = f(rouge_l(*whole), *lengths)
    summary = long
    if "\n" in reference or "\n" in prediction:
        lines = ([tokens(line) for line in text.split("\n")] for text in (reference, prediction))
        summary = f(rouge_lsum(*lines), *lengths)
    return ngrams["rouge1"].fmeasure, ngrams["rouge2"].fmeasure, long, summary


@functools.cache
def _scorer() -> tuple:
    """rouge-score for n-grams, and its tokens of a text. Words are stemmed once: it takes long."""
    # Takes a second to import.
    from nltk.stem.porter import PorterStemmer
    from rouge_score import rouge_scorer, tokenize, tokenizers

    class Stemmer:
        """Porter's, which remembers."""

        stem = staticmethod(functools.lru_cache(maxsize=100_000)(PorterStemmer().stem))

    class Tokenizer(tokenizers.Tokenizer):
        """That of rouge-score with stemming."""

        @staticmethod
        @functools.lru_cache(maxsize=4)
        def tokenize(text: str) -> list[str]:
            return tokenize.tokenize(text, Stemmer)

    return rouge_scorer.RougeScorer(["rouge1", "rouge2"], tokenizer=Tokenizer()), Tokenizer.tokenize


def recovery(gist: float, pos_control: float, neg_control: float) -> float:
    """How much of the gap between the controls gisting closes, in percent; NaN without a gap."""
    gap = pos_control - neg_control
    return 100 * (gist - neg_control) / gap if gap else float("nan")
