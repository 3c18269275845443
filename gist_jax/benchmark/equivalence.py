"""Whether a mode generates the tokens that the full gist-masked prompt gives.

Shape letters: B batch, T tokens of a prompt, W tokens of the output, V vocabulary.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from gist_jax.errors import UserError
from gist_jax.inference.decode import decode_token
from gist_jax.inference.prefill import prefill
from gist_jax.models.config import ModelConfig
from gist_jax.models.model import DecodeState
from gist_jax.models.registry import merge
from gist_jax.models.stack import Params

# Two tokens whose logits differ by less than this share of the logits' standard deviation may change
# places: the order of summation differs between modes, and float32 rounds.
TIE = 1e-4


def agreement(
    expected: np.ndarray,
    output: np.ndarray,
    logits: Callable[[int], np.ndarray] | None = None,
) -> float:
    """The share of equal tokens, int `[B, W]`.

    Args:
      logits: to be strict: gives the logits `[B, V]` of the token after so many of the expected ones.

    Raises:
      UserError: with `logits`, if rows part where there is no tie.
    """
    differ = expected != output
    if logits is None:
        return float(1 - differ.mean())
    for row in np.flatnonzero(differ.any(axis=1)):
        number = int(differ[row].argmax())
        of_row = logits(number)[row]
        gap = abs(of_row[expected[row, number]] - of_row[output[row, number]])
        if gap > TIE * of_row.std():
            raise UserError(
                f"token {number} of row {row} is {output[row, number]}, not {expected[row, number]}, "
                f"whose logit differs by {gap:.3g}: the cache does not give what the prompt gives"
            )
    return float(1 - differ.mean())


@functools.partial(jax.jit, static_argnames=("config", "gist_token"))
def logits_after(
    params: Params,
    tokens: jax.Array,
    segment: jax.Array,
    output: jax.Array,
    *,
    config: ModelConfig,
    gist_token: int,
) -> jax.Array:
    """Logits `[B, V]` of the token that follows the prompts `[B, T]` and an output so far, `[B, W]`."""
    model, number = merge(params, config), output.shape[1]
    settings: dict[str, Any] = dict(condition="gist", gist_token=gist_token, max_new=number + 1)
    prefilled, state = prefill(model, tokens, segment, None, **settings)
    hidden = prefilled.hidden
    if number:

        def step(i: jax.Array, carry: tuple[jax.Array, DecodeState]) -> tuple[jax.Array, DecodeState]:
            return decode_token(model, prefilled, carry[1], output[:, i])

        hidden, _ = jax.lax.fori_loop(0, number, step, (hidden, state))
    return model.logits(hidden)[:, 0]
