"""Runs instructions through the model once and keeps what it remembers of their gist tokens."""

import functools

import jax
import jax.numpy as jnp

from gist_jax import gist
from gist_jax.models.cache import Memory
from gist_jax.models.config import ModelConfig
from gist_jax.models.family import merge
from gist_jax.models.model import Model, Tokens
from gist_jax.models.stack import Params


def read_instructions(
    model: Model, tokens: jax.Array, segment: jax.Array, gist_token: int
) -> tuple[Memory, gist.Layout, jax.Array]:
    """All that the model remembers of a ragged batch; arguments as of `compress`.

    Returns:
      The memory of all T slots, the layout `[B, T]`, and the position `[B]` of the token that follows.
    """
    layout = gist.layout_of(tokens, gist_token, segment)
    mask = gist.attention_mask(layout, "gist", bidirectional=model.config.bidirectional)
    bias = gist.mask_to_bias(mask, model.embedding.dtype)
    _, memory = model.read(Tokens(tokens, gist.positions_of(segment), bias))
    return memory, layout, jnp.sum(segment > 0, axis=1, dtype=jnp.int32)


@functools.partial(jax.jit, static_argnames=("config", "gist_token", "num_kept"))
def compress(
    params: Params,
    tokens: jax.Array,
    segment: jax.Array,
    *,
    config: ModelConfig,
    gist_token: int,
    num_kept: int,
) -> tuple[Memory, gist.Layout, jax.Array]:
    """Compresses a ragged batch.

    Args:
      params: with layers apart (`stack.unstacked`).
      tokens: int `[B, T]`, each row ending with gist tokens; padded at either end.
      segment: int `[B, T]`, 1 for tokens and 0 for padding.
      num_kept: G, the most gist tokens of any row.

    Returns:
      The memory of G slots per row, their layout `[B, G]` with segment 0 in rows that have fewer gist
      tokens, and the position `[B]` of the token that follows each row.
    """
    model = merge(params, config)
    memory, layout, offset = read_instructions(model, tokens, segment, gist_token)
    # Indices of the gist tokens, in order, then of others (for rows with fewer).
    slots = jnp.argsort(~layout.is_gist, axis=1, stable=True)[:, :num_kept]
    kept = gist.Layout(*(jnp.take_along_axis(x, slots, axis=1) for x in layout))
    kept = kept._replace(segment=jnp.where(kept.is_gist, kept.segment, 0))
    return memory.take(slots), kept, offset
