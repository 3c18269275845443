"""Prefill and the decode loop, in one compiled program per bucket of shapes."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gist_jax import gist
from gist_jax.inference.gist_cache import GistCache
from gist_jax.inference.sampling import Sampling, sample
from gist_jax.models import llama
from gist_jax.models.cache import KVCache
from gist_jax.models.config import LlamaConfig


class Prompt(NamedTuple):
    """What is known once a prompt has been read. A batch of prompts is padded to T tokens."""

    hidden: jax.Array  # [B, T, D] final hidden states
    cache: KVCache  # T slots
    layout: gist.Layout  # [B, T] of those slots
    positions: jax.Array  # int32 [B, T]
    last: jax.Array  # int32 [B, 1] index of the last token of each row

    def at_last(self, x: jax.Array) -> jax.Array:
        """The entries `[B, 1, …]` of `[B, T, …]` at the last token of each row."""
        return jnp.take_along_axis(x, self.last.reshape(-1, *[1] * (x.ndim - 1)), axis=1)


def prefill(
    params: llama.Params,
    tokens: jax.Array,
    segment: jax.Array,
    prefix: GistCache | None,
    *,
    config: LlamaConfig,
    condition: str,
    gist_token: int,
) -> Prompt:
    """Reads the prompts of a ragged batch; arguments as of `generate`."""
    length = tokens.shape[1]
    layout = gist.layout_of(tokens, gist_token, segment)
    positions = gist.positions_of(segment)
    if prefix is not None:
        layout = gist.continued(prefix.layout, layout)
        positions = positions + prefix.offset[:, None]
    keys, num_before = _behind(prefix, layout)
    mask = gist.visible(layout, keys, condition)
    mask &= gist.causal(length, num_before + length, first_slot=num_before)
    hidden, cache = llama.forward(
        params,
        config,
        tokens,
        positions,
        gist.mask_to_bias(mask, params["embedding"].dtype),
        prefix=prefix.cache if prefix is not None else None,
    )
    last = jnp.max(jnp.where(segment > 0, jnp.arange(length), 0), axis=1, keepdims=True)
    return Prompt(hidden, cache, layout, positions, last)


def _behind(prefix: GistCache | None, layout: gist.Layout) -> tuple[gist.Layout, int]:
    """The layout of all keys, those of the prefix first, and how many those are."""
    if prefix is None:
        return layout, 0
    return gist.joined(prefix.layout, layout), prefix.num_gist_tokens


class _State(NamedTuple):
    """What a decode step changes."""

    step: jax.Array  # int32 scalar: tokens chosen so far
    token: jax.Array  # int32 [B], the last one chosen
    cache: KVCache
    output: jax.Array  # int32 [B, max_new]
    done: jax.Array  # bool [B]


@functools.partial(jax.jit, static_argnames=("config", "condition", "gist_token", "max_new"))
def generate(
    params: llama.Params,
    tokens: jax.Array,
    segment: jax.Array,
    prefix: GistCache | None,
    limit: jax.Array,
    eos_token: jax.Array,
    seed: jax.Array,
    sampling: Sampling | None,
    *,
    config: LlamaConfig,
    condition: str,
    gist_token: int,
    max_new: int,
) -> jax.Array:
    """Continues every row of a ragged batch.

    Args:
      params: with layers apart (`llama.unstacked`).
      tokens: int `[B, T]`: whole prompts, or what follows the compressed instruction in `prefix`.
      segment: int `[B, T]`, 1 for tokens and 0 for padding, which may stand at either end. A row of
        padding alone is not continued.
      prefix: of batch B, or of batch 1 for all rows.
      limit: int scalar, stop after so many new tokens.
      eos_token: int scalar. A row ends with it.
      sampling: None is greedy.
      max_new: the most that `limit` may be; the size of the cache depends on it.

    Returns:
      int32 `[B, max_new]`; after its end of sequence a row is filled with eos_token.
    """
    batch, length = tokens.shape
    shape = dict(config=config, condition=condition, gist_token=gist_token)
    prompt = prefill(params, tokens, segment, prefix, **shape)
    next_position = prompt.at_last(prompt.positions) + 1

    row_keys = jax.vmap(lambda row: jax.random.fold_in(jax.random.key(seed), row))(jnp.arange(batch))

    def choose(hidden, step):
        keys = jax.vmap(lambda key: jax.random.fold_in(key, step))(row_keys)
        return sample(llama.logits(params, config, hidden)[:, 0], keys, sampling)

    # Slots of the cache: the prompt, padding and all, then the new tokens, part of its last span.
    room = ((0, 0), (0, 0), (0, max_new), (0, 0))
    cache = jax.tree.map(lambda x: jnp.pad(x, room), prompt.cache)
    new = gist.Layout(
        jnp.ones((batch, max_new), jnp.int32),
        jnp.broadcast_to(gist.next_span(prompt.layout), (batch, max_new)),
        jnp.zeros((batch, max_new), bool),
    )
    keys, num_before = _behind(prefix, gist.joined(prompt.layout, new))
    of_new = gist.visible(jax.tree.map(lambda x: x[:, :1], new), keys, condition)

    def unfinished(state: _State):
        return (state.step < limit) & ~jnp.all(state.done)

    def decode(state: _State) -> _State:
        slot = length + state.step - 1  # of the last chosen token, which is not in the cache yet
        mask = of_new & gist.causal(1, of_new.shape[-1], first_slot=num_before + slot)
        hidden, cache = llama.forward(
            params,
            config,
            state.token[:, None],
            next_position + state.step - 1,
            gist.mask_to_bias(mask, params["embedding"].dtype),
            cache=state.cache,
            slot=slot,
            prefix=prefix.cache if prefix is not None else None,
        )
        return advanced(state._replace(cache=cache), choose(hidden, state.step))

    def advanced(state: _State, token) -> _State:
        token = jnp.where(state.done, eos_token, token)
        output = jax.lax.dynamic_update_slice(state.output, token[:, None], (0, state.step))
        return _State(state.step + 1, token, state.cache, output, state.done | (token == eos_token))

    output = jnp.full((batch, max_new), eos_token, jnp.int32)
    start = _State(jnp.int32(0), output[:, 0], cache, output, jnp.all(segment == 0, axis=1))
    start = advanced(start, choose(prompt.at_last(prompt.hidden), 0))
    return jax.lax.while_loop(unfinished, decode, start).output
