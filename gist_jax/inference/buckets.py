"""Lengths are padded up to buckets, so that there is one compilation per bucket, not per request."""

from collections.abc import Sequence

import numpy as np

from gist_jax.data.prompt_template import Prompt


def bucket(size: int, smallest: int = 1) -> int:
    """The smallest of 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, … that holds `size`; from `smallest` on."""
    power = smallest
    while power < size:
        power *= 2
    return power // 4 * 3 if power >= 4 and power > smallest and power // 4 * 3 >= size else power


def padded_rows(
    rows: Sequence[Sequence[int]], pad_id: int, shape: tuple[int, int] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Ragged rows of ids to tokens and segment, int32 `[B, T]`, padded at the end.

    Args:
      shape: B and T; by default the buckets of the number of rows and of the longest.
    """
    if shape is None:
        shape = bucket(len(rows)), bucket(max(len(row) for row in rows), smallest=16)
    tokens, segment = np.full(shape, pad_id, np.int32), np.zeros(shape, np.int32)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = row
        segment[i, : len(row)] = 1
    return tokens, segment


def padded_spans(
    gives_spans: bool, rows: Sequence[Sequence[int]], shape: tuple[int, ...]
) -> np.ndarray | None:
    """The spans of rows that `padded_rows` pads to a shape: int32 `[B, T]`.

    They are 0 where a `Prompt` is compressed, and 1 elsewhere; None where they can be read off the ids.

    Args:
      gives_spans: of `PromptTemplate`.
    """
    if not gives_spans:
        return None
    span = np.ones(shape, np.int32)
    for i, row in enumerate(rows):
        span[i, : row.head if isinstance(row, Prompt) else 0] = 0
    return span
