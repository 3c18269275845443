"""Prefill and the decode loop, in one compiled program per bucket of shapes."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gist_jax import gist
from gist_jax.inference.gist_cache import GistCache
from gist_jax.inference.sampling import Sampling, sample
from gist_jax.models.cache import KVCache
from gist_jax.models.config import ModelConfig
from gist_jax.models.family import merge
from gist_jax.models.model import Begun, Model, Tokens
from gist_jax.models.stack import Params


class Read(NamedTuple):
    """A batch of prompts that was read. P slots: those of the prefix, then T of the prompt."""

    hidden: jax.Array  # [B, T, D]
    positions: jax.Array  # int32 [B, T]
    context: tuple[KVCache, ...]  # of the prefix, if there is one, and of the prompt: P slots in all
    layout: gist.Layout  # [B, T], of the prompt
    seen: gist.Layout  # [B, P], of all slots


class Prompt(NamedTuple):
    """What writing needs of a batch of prompts. P slots: those of the prefix, then T of the prompt."""

    begun: Begun
    context: tuple[KVCache, ...]  # of the prefix, if there is one, and of the prompt: P slots in all
    visible: jax.Array  # bool [B, 1, 1, P + slots]: what an output token may see, causality apart


def _bias(visible: jax.Array, context: tuple[KVCache, ...], slot, dtype) -> jax.Array:
    """Of the output token that stands in a slot: `[B, 1, 1, P + slots]`."""
    first_slot = sum(cache.num_slots for cache in context) + slot
    return gist.mask_to_bias(visible & gist.causal(1, visible.shape[-1], first_slot), dtype)


def read(
    model: Model,
    tokens: jax.Array,
    segment: jax.Array,
    prefix: GistCache | None,
    *,
    condition: str,
    gist_token: int,
) -> Read:
    """Reads the prompts of a ragged batch; arguments as of `generate`."""
    layout = gist.layout_of(tokens, gist_token, segment)
    positions = gist.positions_of(segment)
    before, known, memories = None, None, []
    if prefix is not None:
        layout = gist.continued(prefix.layout, layout)
        positions = positions + prefix.offset[:, None]
        before, known, memories = prefix.layout, prefix.memory, [prefix.memory]
    mask = gist.attention_mask(
        layout, condition, before=before, bidirectional=model.config.bidirectional
    )
    bias = gist.mask_to_bias(mask, model.embedding.dtype)
    hidden, memory = model.read(Tokens(tokens, positions, bias), known)
    context = tuple(model.context(m) for m in [*memories, memory])
    seen = layout if before is None else gist.joined(before, layout)
    return Read(hidden, positions, context, layout, seen)


def prefill(
    model: Model,
    tokens: jax.Array,
    segment: jax.Array,
    prefix: GistCache | None,
    *,
    condition: str,
    gist_token: int,
    max_new: int,
) -> Prompt:
    """Reads the prompts of a ragged batch and begins to write; arguments as of `generate`."""
    hidden, positions, context, layout, seen = read(
        model, tokens, segment, prefix, condition=condition, gist_token=gist_token
    )
    new = gist.following(layout, jnp.ones((tokens.shape[0], max_new), jnp.int32))
    first = jax.tree.map(lambda x: x[:, :1], new)
    visible = gist.visible(first, gist.joined(seen, new), condition)
    last = jnp.max(jnp.where(segment > 0, jnp.arange(tokens.shape[1]), 0), axis=1, keepdims=True)
    begun = model.begin(
        jnp.take_along_axis(hidden, last[:, :, None], axis=1),
        jnp.take_along_axis(positions, last, axis=1),
        _bias(visible, context, 0, model.embedding.dtype),
        context,
    )
    return Prompt(begun, context, visible)


def write_token(
    model: Model, prompt: Prompt, cache: KVCache, token: jax.Array, number: int | jax.Array
) -> tuple[jax.Array, KVCache]:
    """Writes one token of every output.

    Args:
      token: int `[B]`.
      number: of the token in the output, from 0 on.

    Returns:
      Its hidden states `[B, 1, D]`, which predict the next, and the grown cache.
    """
    slot = prompt.begun.slot + number
    bias = _bias(prompt.visible, prompt.context, slot, model.embedding.dtype)
    tokens = Tokens(token[:, None], prompt.begun.position + number, bias)
    return model.write(tokens, prompt.context, cache, slot)


class _State(NamedTuple):
    """What a decode step changes."""

    step: jax.Array  # int32 scalar: tokens chosen so far
    token: jax.Array  # int32 [B], the last one chosen
    cache: KVCache
    output: jax.Array  # int32 [B, max_new]
    done: jax.Array  # bool [B]


@functools.partial(jax.jit, static_argnames=("config", "condition", "gist_token", "max_new"))
def generate(
    params: Params,
    tokens: jax.Array,
    segment: jax.Array,
    prefix: GistCache | None,
    limit: jax.Array,
    eos_token: jax.Array,
    seed: jax.Array,
    sampling: Sampling | None,
    *,
    config: ModelConfig,
    condition: str,
    gist_token: int,
    max_new: int,
) -> jax.Array:
    """Writes an output for every row of a ragged batch.

    Args:
      params: with layers apart (`stack.unstacked`).
      tokens: int `[B, T]`: whole prompts, or what follows the compressed instruction in `prefix`.
      segment: int `[B, T]`, 1 for tokens and 0 for padding, which may stand at either end. Nothing is
        written for a row of padding alone.
      prefix: of batch B, or of batch 1 for all rows.
      limit: int scalar, stop after so many new tokens.
      eos_token: int scalar. A row ends with it.
      sampling: None is greedy.
      max_new: the most that `limit` may be; the size of the cache depends on it.

    Returns:
      int32 `[B, max_new]`; after its end of sequence a row is filled with eos_token.
    """
    batch = tokens.shape[0]
    model = merge(params, config)
    shape = dict(condition=condition, gist_token=gist_token, max_new=max_new)
    prompt = prefill(model, tokens, segment, prefix, **shape)
    begun = prompt.begun

    row_keys = jax.vmap(lambda row: jax.random.fold_in(jax.random.key(seed), row))(jnp.arange(batch))

    def choose(hidden, step):
        keys = jax.vmap(lambda key: jax.random.fold_in(key, step))(row_keys)
        return sample(model.logits(hidden)[:, 0], keys, sampling)

    def unfinished(state: _State):
        return (state.step < limit) & ~jnp.all(state.done)

    def decode(state: _State) -> _State:
        # The last token is not in the cache yet.
        hidden, cache = write_token(model, prompt, state.cache, state.token, state.step - 1)
        return advanced(state._replace(cache=cache), choose(hidden, state.step))

    def advanced(state: _State, token) -> _State:
        token = jnp.where(state.done, eos_token, token)
        output = jax.lax.dynamic_update_slice(state.output, token[:, None], (0, state.step))
        return _State(state.step + 1, token, state.cache, output, state.done | (token == eos_token))

    output = jnp.full((batch, max_new), eos_token, jnp.int32)
    nothing_to_read = jnp.all(segment == 0, axis=1)
    start = _State(jnp.int32(0), output[:, 0], begun.cache, output, nothing_to_read)
    start = advanced(start, choose(begun.hidden, 0))
    return jax.lax.while_loop(unfinished, decode, start).output
