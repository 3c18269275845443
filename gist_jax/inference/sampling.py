"""Choosing the next token from its scores."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Sampling(NamedTuple):
    """How to sample. Arrays, so that changing a value compiles nothing anew."""

    temperature: jax.Array  # float32 scalar, above 0
    top_k: jax.Array  # int32 scalar: keep the k likeliest tokens; 0 keeps all
    top_p: jax.Array  # float32 scalar: keep the likeliest tokens that make up this probability


def sample(scores: jax.Array, keys: jax.Array, how: Sampling | None) -> jax.Array:
    """Draws a token for each row.

    Args:
      scores: float32 `[B, V]`.
      keys: random keys `[B]`, one a row, so that a row does not depend on the batch it stands in.
      how: None takes the likeliest token.

    Returns:
      int32 `[B]`.
    """
    if how is None:
        return jnp.argmax(scores, axis=-1).astype(jnp.int32)
    vocab_size = scores.shape[-1]
    scores = scores / how.temperature
    order = jnp.argsort(-scores, axis=-1)
    ranked = jnp.take_along_axis(scores, order, axis=-1)
    top_k = jnp.where(how.top_k > 0, how.top_k, vocab_size)
    ranked = jnp.where(jnp.arange(vocab_size) < top_k, ranked, -jnp.inf)
    probability = jax.nn.softmax(ranked, axis=-1)
    before = jnp.cumsum(probability, axis=-1) - probability
    # The likeliest token stays even when top_p is 0.
    keep = (before < how.top_p) | (jnp.arange(vocab_size) == 0)
    ranked = jnp.where(keep, ranked, -jnp.inf)
    choice = jax.vmap(jax.random.categorical)(keys, ranked)
    return jnp.take_along_axis(order, choice[:, None], axis=-1)[:, 0].astype(jnp.int32)
