"""The one path from token ids to layout, mask, bias and memory, for training and inference alike.

Shape letters: B batch, T tokens of a prompt, P slots of a prefix before them, G gist tokens, D model
dim.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gist_jax import gist
from gist_jax.inference.gist_cache import GistCache
from gist_jax.models.adapter import Adapter
from gist_jax.models.cache import KVCache, Memory
from gist_jax.models.config import ModelConfig
from gist_jax.models.model import DecodeState, Model, Tokens
from gist_jax.models.registry import merge
from gist_jax.models.stack import Params
from gist_jax.sharding import constrain, fitted_size


class Prefilled(NamedTuple):
    """What decoding reads of a batch of prompts and never changes."""

    hidden: jax.Array  # [B, 1, D], predicts the first token of the output
    context: tuple[KVCache, ...]  # of the prefix, if there is one, and of the prompt: P + T slots in all
    visible: jax.Array  # bool [B, 1, 1, P + T + slots]: what an output token may see, but for causality


def make_tokens(
    ids: jax.Array,
    layout: gist.Layout,
    positions: jax.Array,
    *,
    condition: str,
    gist_token: int,
    dtype: Any,
    **options: Any,
) -> Tokens:
    """Puts token ids together with the attention bias that a condition gives them.

    An adapter acts at the gist tokens, not at others that count as such.

    Args:
      ids: int `[B, T]`.
      layout: `[B, T]`, of the ids.
      positions: int `[B or 1, T]`.
      dtype: of the bias.
      options: of `gist.attention_mask`.
    """
    mask = gist.attention_mask(layout, condition, **options)
    adapts = layout.is_gist & (ids == gist_token)
    return Tokens(ids, positions, gist.mask_to_bias(mask, dtype), adapts)


def fitted(prefix: GistCache | None, model: Model) -> GistCache | None:
    """A gist cache, if there is one, with as many key/value heads as the model has on the mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    heads = fitted_size(mesh, "kv_heads", model.config.num_kv_heads)
    return None if prefix is None else prefix.with_heads(heads)


def run_prompt(
    model: Model,
    tokens: jax.Array,
    segment: jax.Array,
    prefix: GistCache | None,
    *,
    condition: str,
    gist_token: int,
    needed: jax.Array | None = None,
    mask: gist.MaskConfig = gist.PAPER_MASK,
    span: jax.Array | None = None,
) -> tuple[jax.Array, Memory, gist.Layout]:
    """Runs the prompts of a ragged batch through a model; arguments as of `decode.generate`.

    Returns:
      Final hidden states `[B, T, D]`, or of the slots that are `needed`, int `[B, Q]`; what later tokens
      may look at; and the layout `[B, T]`.
    """
    layout, prefix = gist.layout_of(tokens, gist_token, segment, span, mask.extra), fitted(prefix, model)
    positions = gist.positions_of(segment)
    if prefix is not None:
        layout = gist.continued(prefix.layout, layout)
        positions = positions + prefix.offset[:, None]
    inputs = make_tokens(
        tokens,
        layout,
        positions,
        condition=condition,
        gist_token=gist_token,
        dtype=model.embedding.dtype,
        before=None if prefix is None else prefix.layout,
        bidirectional=model.config.is_encoder_decoder,
        causal_gists=mask.causal_gists,
    )
    hidden, memory = model.prefill(inputs, None if prefix is None else prefix.memory, needed)
    return hidden, memory, layout


def prefill(
    model: Model,
    tokens: jax.Array,
    segment: jax.Array,
    prefix: GistCache | None,
    *,
    condition: str,
    gist_token: int,
    max_new: int,
    mask: gist.MaskConfig = gist.PAPER_MASK,
    span: jax.Array | None = None,
) -> tuple[Prefilled, DecodeState]:
    """Runs the prompts of a ragged batch and prepares decoding; arguments as of `decode.generate`."""
    prefix = fitted(prefix, model)
    last = jnp.max(jnp.where(segment > 0, jnp.arange(tokens.shape[1]), 0), axis=1, keepdims=True)
    settings: dict[str, Any] = dict(condition=condition, gist_token=gist_token, mask=mask, span=span)
    hidden, memory, layout = run_prompt(model, tokens, segment, prefix, needed=last, **settings)
    context: tuple[KVCache, ...] = (model.context_kv(memory),)
    seen = layout
    if prefix is not None:
        context = (prefix.context_kv(model), *context)
        seen = gist.joined(prefix.layout, layout)
    new = gist.following(layout, jnp.ones((tokens.shape[0], max_new), jnp.int32))
    first = jax.tree.map(lambda x: x[:, :1], new)
    visible = gist.visible(first, gist.joined(seen, new), condition)
    hidden, state = model.init_decode(
        hidden,
        jnp.take_along_axis(memory.positions, last, axis=1),
        decode_bias(visible, context, 0, model.embedding.dtype),
        context,
    )
    return Prefilled(hidden, context, visible), state


def decode_bias(
    visible: jax.Array, context: tuple[KVCache, ...], slot: int | jax.Array, dtype: Any
) -> jax.Array:
    """The bias `[B, 1, 1, P + T + slots]` of the output token in a slot; see `Prefilled`."""
    first_slot = sum(cache.num_slots for cache in context) + slot
    return gist.mask_to_bias(visible & gist.causal(1, visible.shape[-1], first_slot), dtype)


@functools.partial(jax.jit, static_argnames=("config", "gist_token", "num_kept", "mask"))
def compress(
    params: Params,
    tokens: jax.Array,
    segment: jax.Array,
    *,
    config: ModelConfig,
    gist_token: int,
    num_kept: int,
    adapter: Adapter | None = None,
    prefix: GistCache | None = None,
    mask: gist.MaskConfig = gist.PAPER_MASK,
    span: jax.Array | None = None,
) -> GistCache:
    """Compresses a ragged batch.

    Args:
      params: with unrolled layers (`stack.unstacked`).
      tokens: int `[B, T]`, instructions with their gist tokens; padded at either end.
      segment: int `[B, T]`, 1 for tokens and 0 for padding.
      num_kept: G, the most gist tokens of any row, and what counts as such.
      adapter: with unrolled layers, acts at the gist tokens.
      prefix: what was compressed before, and is seen; of batch B, or of batch 1 for all rows.
      mask: of the model.
      span: int `[B, T]`, where it cannot be read off the tokens: see `gist.layout_of`.

    Returns:
      A gist cache that does not say yet what it was made of, with segment 0 where a row has fewer gist
      tokens. Those of `prefix` come first in it.
    """
    model = merge(params, config, adapter)
    prefix = fitted(prefix, model)
    settings: dict[str, Any] = dict(condition="gist", gist_token=gist_token, mask=mask, span=span)
    _, memory, layout = run_prompt(model, tokens, segment, prefix, **settings)
    # Indices of the gist tokens, in order, then of others (for rows with fewer).
    slots = jnp.argsort(~layout.is_gist, axis=1, stable=True)[:, :num_kept]
    kept = gist.Layout(*(jnp.take_along_axis(x, slots, axis=1) for x in layout))
    kept = kept._replace(segment=jnp.where(kept.is_gist, kept.segment, 0))
    offset = jnp.sum(segment > 0, axis=1, dtype=jnp.int32)
    gists = GistCache(memory.take(slots), kept, offset)
    if prefix is not None:
        memory, kept = prefix.memory.join(gists.memory), gist.joined(prefix.layout, kept)
        gists = GistCache(memory, kept, prefix.offset + offset)
    gists = gists.with_heads(config.num_kv_heads)
    # Whole everywhere: it is small, and any other mesh may be the one that uses it.
    return jax.tree.map(lambda x: constrain(x, *["length"] * x.ndim), gists)


@functools.partial(jax.jit, static_argnames=("config", "gist_token"))
def encode_after(
    params: Params,
    tokens: jax.Array,
    segment: jax.Array,
    gists: GistCache,
    *,
    config: ModelConfig,
    gist_token: int,
) -> jax.Array:
    """The final states `[B, T, D]` of an encoder that reads inputs after gist caches.

    Args:
      tokens: int `[B, T]`, of the inputs.
      segment: int `[B, T]`, 1 for tokens and 0 for padding.
    """
    model = merge(params, config)
    return run_prompt(model, tokens, segment, gists, condition="gist", gist_token=gist_token)[0]
