"""Runs instructions through the model once and keeps keys and values at their gist tokens."""

import functools

import jax
import jax.numpy as jnp

from gist_jax import gist
from gist_jax.models import llama
from gist_jax.models.cache import KVCache
from gist_jax.models.config import LlamaConfig


@functools.partial(jax.jit, static_argnames=("config", "gist_token", "num_kept"))
def compress(
    params: llama.Params,
    tokens: jax.Array,
    segment: jax.Array,
    *,
    config: LlamaConfig,
    gist_token: int,
    num_kept: int,
) -> tuple[KVCache, gist.Layout, jax.Array]:
    """Compresses a ragged batch.

    Args:
      params: with layers apart (`llama.unstacked`).
      tokens: int `[B, T]`, each row ending with gist tokens; padded at either end.
      segment: int `[B, T]`, 1 for tokens and 0 for padding.
      num_kept: G, the most gist tokens of any row.

    Returns:
      Keys and values `[B, K, G, H]` per layer, their layout `[B, G]` with segment 0 in rows that
      have fewer gist tokens, and the position `[B]` of the token that follows each row.
    """
    layout = gist.layout_of(tokens, gist_token, segment)
    bias = gist.mask_to_bias(gist.decoder_mask(layout, "gist"), params["embedding"].dtype)
    cache = llama.forward(params, config, tokens, gist.positions_of(segment), bias).cache
    # Indices of the gist tokens, in order, then of others (for rows with fewer).
    slots = jnp.argsort(~layout.is_gist, axis=1, stable=True)[:, :num_kept]
    cache = jax.tree.map(lambda x: jnp.take_along_axis(x, slots[:, None, :, None], axis=2), cache)
    kept = gist.Layout(*(jnp.take_along_axis(x, slots, axis=1) for x in layout))
    kept = kept._replace(segment=jnp.where(kept.is_gist, kept.segment, 0))
    return cache, kept, jnp.sum(segment > 0, axis=1, dtype=jnp.int32)
