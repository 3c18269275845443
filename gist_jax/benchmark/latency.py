"""Times that can be compared: of compiled and warm programs, interleaved in a random order."""

import pathlib
import tempfile
import time
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import TypeVar

import jax
import numpy as np

# Seconds before every run: threads of the one before still wait busily for a while, as OpenMP's do.
PAUSE = 0.02

Name = TypeVar("Name", bound=Hashable)


def interleaved(
    runs: Mapping[Name, Callable[[], object]], rounds: int, tick: Callable[[], object]
) -> dict[Name, np.ndarray]:
    """Seconds of every run in every round, float64 `[rounds]`.

    Whatever slows a machine down for a while meets all runs alike, so those of one round are a pair.

    Args:
      runs: functions that return arrays; they are waited for.
      tick: called after every round.
    """
    rng = np.random.default_rng(0)
    seconds = {name: np.zeros(rounds) for name in runs}
    for run in runs.values():
        jax.block_until_ready(run())
    for i in range(rounds):
        for name in [list(runs)[j] for j in rng.permutation(len(runs))]:
            time.sleep(PAUSE)
            start = time.perf_counter()
            jax.block_until_ready(runs[name]())
            seconds[name][i] = time.perf_counter() - start
        tick()
    return seconds


def quotient(above: np.ndarray, below: np.ndarray) -> tuple[float, float, float]:
    """The quotient of two medians, with a 95 % interval.

    Args:
      above, below: seconds of the same rounds, `[rounds]`.

    Returns:
      The quotient, and the limits of its paired bootstrap interval: rounds are drawn again, with both
      times of each.
    """
    return _with_interval(lambda a, b: np.median(a, axis=-1) / np.median(b, axis=-1), above, below)


def paired_ratio(above: np.ndarray, below: np.ndarray) -> tuple[float, float, float]:
    """The median of the ratios of each round, `[rounds]`, with its 95 % bootstrap interval."""
    return _with_interval(lambda a, b: np.median(a / b, axis=-1), above, below)


def _with_interval(
    statistic: Callable[[np.ndarray, np.ndarray], np.ndarray], above: np.ndarray, below: np.ndarray
) -> tuple[float, float, float]:
    """A statistic of rounds, `[…, rounds]` to `[…]`, with its 95 % paired bootstrap interval."""
    drawn = np.random.default_rng(0).integers(0, len(above), (2000, len(above)))
    low, high = np.percentile(statistic(above[drawn], below[drawn]), [2.5, 97.5])
    return float(statistic(above, below)), float(low), float(high)


def saving(base: np.ndarray, other: np.ndarray) -> tuple[float, float, float]:
    """Share of the median of `base` that `other` saves, with its interval; see `quotient`."""
    left, low, high = quotient(other, base)
    return 1 - left, 1 - high, 1 - low


def device_seconds(run: Callable[[], object], times: int = 5) -> float | None:
    """Seconds in which an accelerator is busy with one execution; None of CPUs, or without a profile."""
    if jax.default_backend() == "cpu":
        return None
    with tempfile.TemporaryDirectory() as directory:
        with jax.profiler.trace(directory):
            for _ in range(times):
                jax.block_until_ready(run())
        (file,) = pathlib.Path(directory).rglob("*.xplane.pb")
        planes = jax.profiler.ProfileData.from_file(str(file)).planes
        intervals = [
            (event.start_ns, event.start_ns + event.duration_ns)
            for plane in planes
            if plane.name.startswith("/device:") and plane.name.endswith(":0")
            for line in plane.lines
            for event in line.events
        ]
    return covered(intervals) / 1e9 / times if intervals else None


def covered(intervals: Iterable[tuple[float, float]]) -> float:
    """Length of the union of intervals: operations overlap, and stand in several lines of a profile."""
    total, end = 0.0, float("-inf")
    for start, stop in sorted(intervals):
        total += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return total
