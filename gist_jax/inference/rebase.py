"""Gist caches moved to positions 0 … k - 1: for more room, and as prefixes for other engines."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gist_jax.errors import UserError
from gist_jax.gist import Layout
from gist_jax.inference.gist_cache import GistCache
from gist_jax.interop.prefix import Prefix, check_positions, rotated_back
from gist_jax.models.cache import KVCache, Memory, take_slots
from gist_jax.models.config import LlamaConfig, ModelConfig


def rebased(gists: GistCache, config: ModelConfig) -> GistCache:
    """The same gist tokens at positions 0 … k - 1, so that what follows goes on at k.

    Keys of rotary models are rotated back by the first gist token's position. T5 computes only
    distances, and its keys stay as they are.

    Raises:
      UserError: if a row's gist tokens do not stand in one run.
    """
    if gists.origin is not None and gists.origin.rebased:
        return gists
    memory = gists.memory
    positions, valid = np.asarray(memory.positions), np.asarray(gists.layout.segment) > 0
    check_positions(positions, valid, np.asarray(gists.offset), config.max_positions)
    keys = memory.cache.keys
    if isinstance(config, LlamaConfig):
        keys = rotated_back(keys, positions[:, 0], config)
    moved = jnp.where(valid, positions - positions[:, :1], 0).astype(jnp.int32)
    origin = None if gists.origin is None else dataclasses.replace(gists.origin, rebased=True)
    return dataclasses.replace(
        gists,
        memory=Memory(KVCache(keys, memory.cache.values), moved, memory.states),
        offset=jnp.asarray(valid.sum(axis=1), jnp.int32),
        origin=origin,
    )


def prefix_of(gists: GistCache, config: ModelConfig, described: Mapping[str, Any]) -> Prefix:
    """Gist caches as a prefix for other engines.

    Args:
      described: what made them, as JSON has it.

    Raises:
      UserError: of an encoder-decoder, whose stock encoders take no cache.
    """
    if config.is_encoder_decoder:
        raise UserError(
            "stock encoders take no cache: give transformers the encoder's states, see "
            "LanguageModel.encode_inputs"
        )
    gists = rebased(gists, config)
    layout: Layout = gists.layout
    # A row's gist tokens stand first; an engine counts what is masked before them as nothing.
    slots = jnp.argsort(layout.segment > 0, axis=1, stable=True)
    cache = jax.tree.map(lambda x: take_slots(x, slots, 2), gists.memory.cache)
    mask = np.asarray(jnp.take_along_axis(layout.segment, slots, axis=1)) > 0
    return Prefix(cache.keys, cache.values, mask, described)
