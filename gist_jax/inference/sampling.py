"""Choosing the next token from its logits."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gist_jax.errors import UserError


class Sampling(NamedTuple):
    """How to sample. Arrays, so that changing a value compiles nothing anew.

    Scalars, or of `[B, 1]`: rows may differ.
    """

    temperature: jax.Array | np.float32  # float32; 0 takes the likeliest token
    top_k: jax.Array | np.int32  # int32: keep the k likeliest tokens; 0 keeps all
    # float32: keep the likeliest tokens that make up this probability.
    top_p: jax.Array | np.float32


def make_sampling(temperature: float, top_k: int, top_p: float) -> Sampling | None:
    """How tokens are chosen; None, greedily, at temperature 0.

    Raises:
      UserError: naming a value that cannot be.
    """
    limits = {"temperature": (temperature, 1e6), "top_k": (top_k, 2**31 - 1), "top_p": (top_p, 1)}
    for name, (value, most) in limits.items():
        if not 0 <= value <= most:  # nor NaN
            raise UserError(f"{name} must be in 0 … {most:g}, but is {value}")
    if temperature == 0:
        return None
    return Sampling(np.float32(temperature), np.int32(top_k), np.float32(top_p))


def row_keys(seeds: jax.Array, numbers: jax.Array) -> jax.Array:
    """The random keys `[B]` of rows with seeds, uint32 `[B]`, and numbers, int32 `[B]`."""
    return jax.vmap(jax.random.fold_in)(jax.vmap(jax.random.key)(seeds), numbers)


def sample(logits: jax.Array, keys: jax.Array, how: Sampling | None) -> jax.Array:
    """Draws a token for each row.

    Args:
      logits: float32 `[B, V]`.
      keys: random keys `[B]`, one a row, so that a row does not depend on the batch it stands in.
      how: None takes the likeliest token.

    Returns:
      int32 `[B]`.
    """
    if how is None:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    vocab_size = logits.shape[-1]
    likeliest = jnp.argmax(logits, axis=-1)
    logits = logits / jnp.where(how.temperature > 0, how.temperature, 1)
    order = jnp.argsort(-logits, axis=-1)
    ranked = jnp.take_along_axis(logits, order, axis=-1)
    top_k = jnp.where(how.top_k > 0, how.top_k, vocab_size)
    ranked = jnp.where(jnp.arange(vocab_size) < top_k, ranked, -jnp.inf)
    probability = jax.nn.softmax(ranked, axis=-1)
    before = jnp.cumsum(probability, axis=-1) - probability
    # The likeliest token stays even when top_p is 0.
    keep = (before < how.top_p) | (jnp.arange(vocab_size) == 0)
    ranked = jnp.where(keep, ranked, -jnp.inf)
    choice = jax.vmap(jax.random.categorical)(keys, ranked)
    drawn = jnp.take_along_axis(order, choice[:, None], axis=-1)[:, 0]
    is_greedy = jnp.broadcast_to(how.temperature, (len(logits), 1))[:, 0] == 0
    return jnp.where(is_greedy, likeliest, drawn).astype(jnp.int32)
