"""ROUGE and exact match, in percent, as the paper reports them."""

from collections.abc import Sequence

import numpy as np

from gist_jax.training.config import METRICS

ROUGE = METRICS[:-1]


def score(records: Sequence[dict[str, str]]) -> dict[str, float]:
    """Means over records: F-measures of ROUGE-1, -2 and -L with stemming, and exact match.

    Args:
      records: with a prediction and a reference each.

    The settings are those of the published evaluation (arXiv 2304.08467).
    """
    from rouge_score import rouge_scorer  # takes a second to import

    scorer = rouge_scorer.RougeScorer(ROUGE, use_stemmer=True)
    rows = []
    for record in records:
        prediction, reference = record["prediction"], record["reference"]
        rouge = scorer.score(reference, prediction)
        exact = float(prediction.strip() == reference.strip())
        rows.append([*(rouge[name].fmeasure for name in ROUGE), exact])
    return dict(zip(METRICS, (100 * np.mean(rows, axis=0)).tolist(), strict=True))


def recovery(gist: float, pos_control: float, neg_control: float) -> float:
    """How much of the gap between the controls gisting closes, in percent; NaN without a gap."""
    gap = pos_control - neg_control
    return 100 * (gist - neg_control) / gap if gap else float("nan")
