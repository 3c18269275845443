"""Whether a mode writes the tokens that the full gist-masked prompt gives.

Shape letters: B batch, T tokens of a prompt, W tokens written, V vocabulary.
"""

import functools
from collections.abc import Callable

import jax
import numpy as np

from gist_jax.errors import UserError
from gist_jax.inference.generate import prefill, write_token
from gist_jax.models.config import ModelConfig
from gist_jax.models.family import merge
from gist_jax.models.stack import Params

# Two tokens whose scores differ by less than this share of the scores' standard deviation may change
# places: the order of summation differs between modes, and float32 rounds.
TIE = 1e-4


def agreement(
    expected: np.ndarray,
    written: np.ndarray,
    scores: Callable[[int], np.ndarray] | None = None,
) -> float:
    """The share of equal tokens, int `[B, W]`.

    Args:
      scores: to be strict: gives the scores `[B, V]` of the token after so many of the expected ones.

    Raises:
      UserError: with `scores`, if rows part where there is no tie.
    """
    differ = expected != written
    for row in np.flatnonzero(differ.any(axis=1)) if scores is not None else ():
        number = int(differ[row].argmax())
        of_row = scores(number)[row]
        gap = abs(of_row[expected[row, number]] - of_row[written[row, number]])
        if gap > TIE * of_row.std():
            raise UserError(
                f"token {number} of row {row} is {written[row, number]}, not {expected[row, number]}, "
                f"whose score differs by {gap:.3g}: the cache does not give what the prompt gives"
            )
    return float(1 - differ.mean())


@functools.partial(jax.jit, static_argnames=("config", "gist_token"))
def scores_after(
    params: Params,
    tokens: jax.Array,
    segment: jax.Array,
    written: jax.Array,
    *,
    config: ModelConfig,
    gist_token: int,
) -> jax.Array:
    """Scores `[B, V]` of the token that follows the prompts `[B, T]` and an output so far, `[B, W]`."""
    model, number = merge(params, config), written.shape[1]
    settings = dict(condition="gist", gist_token=gist_token, max_new=number + 1)
    prompt = prefill(model, tokens, segment, None, **settings)

    def step(i, state):
        return write_token(model, prompt, state[1], written[:, i], i)

    state = prompt.begun.hidden, prompt.begun.cache
    if number:
        state = jax.lax.fori_loop(0, number, step, state)
    return model.logits(state[0])[:, 0]
