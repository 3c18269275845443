"""Intervals of means over examples, by the bootstrap (Efron, 1979).

Examples are drawn with replacement, again and again; the middle 95 % of the means that come out are the
interval. All statistics of one table are of the same draws, so that pairs stay pairs.
"""

from typing import NamedTuple

import numpy as np

from gist_jax.evaluation.rouge import recovery

DRAWS = 10_000
COVERAGE = 95  # percent
_AT_A_TIME = 500


class Estimate(NamedTuple):
    """A number with its interval."""

    value: float
    low: float
    high: float


def mean_draws(values: np.ndarray, seed: int = 0) -> np.ndarray:
    """Means of examples drawn with replacement, as many as there are.

    Args:
      values: float `[N, C]`, a row for each example.

    Returns:
      float64 `[DRAWS, C]`. Of one N and seed all have the same draws.
    """
    count = len(values)
    rng = np.random.default_rng(seed)
    means = np.empty((DRAWS, values.shape[1]))
    for start in range(0, DRAWS, _AT_A_TIME):
        drawn = rng.integers(count, size=(min(_AT_A_TIME, DRAWS - start), count))
        rows = drawn + count * np.arange(len(drawn))[:, None]
        times = np.bincount(rows.ravel(), minlength=drawn.size).reshape(drawn.shape)
        means[start : start + len(drawn)] = times @ values / count
    return means


def estimate(value: float, draws: np.ndarray) -> Estimate:
    """A number with the interval of its draws, float `[DRAWS]`; NaN if one of these is."""
    rest = (100 - COVERAGE) / 2
    low, high = np.percentile(draws, [rest, 100 - rest])
    return Estimate(float(value), float(low), float(high))


def means(values: np.ndarray) -> list[Estimate]:
    """The mean of every column of values `[N, C]`."""
    drawn = mean_draws(values)
    return [estimate(x, draws) for x, draws in zip(values.mean(axis=0), drawn.T, strict=True)]


def recovered(gist: np.ndarray, pos_control: np.ndarray, neg_control: np.ndarray) -> Estimate:
    """How much of the gap between the controls gisting closes, in percent, see `rouge.recovery`.

    Where the gap may as well be none or the other way round, the interval is without bounds, since then
    any recovery may be the true one (Fieller, 1954).

    Args:
      gist: float `[N]`, as the others: the metric of the same examples in the same order.
    """
    values = np.stack([gist, pos_control, neg_control], axis=1)
    ours, pos, neg = mean_draws(values).T
    value = recovery(*values.mean(axis=0))
    gap = estimate(0, pos - neg)
    if gap.low <= 0 <= gap.high:
        return Estimate(value, -np.inf, np.inf)
    with np.errstate(divide="ignore", invalid="ignore"):  # of a few draws the gap may be none
        closed = 100 * (ours - neg) / (pos - neg)
        return estimate(value, np.nan_to_num(closed, nan=0.0, posinf=np.inf, neginf=-np.inf))
