"""Slots in which outputs are written side by side: where one has ended, the next begins.

A slot holds one row: what its output sees of its prompt, and its output. All rows write into the same
column of a ring in the same step, whenever they began. Here are three slots; the next column is the
fourth, and the row of slot 2 has just begun:

            context (P)                  ring (C)
    slot 0  g Input : a cup Output -     c u p : A .
    slot 1  g g g : tea Output - - -     x Tea is : x x
    slot 2  g Input : no Output - - -    x x x : x x

`-` is padding, and `x` are columns of rows that are gone; neither is seen. The last token of a prompt
is the first to be written into the ring (of an encoder-decoder that is the decoder's start token).

Shape letters: S slots, B prompts read at a time, T their tokens, P slots of a context, C columns.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gist_jax import gist
from gist_jax.inference.gist_cache import GistCache
from gist_jax.inference.prefill import fitted, run_prompt
from gist_jax.inference.sampling import Sampling, row_keys, sample
from gist_jax.models.adapter import Adapter
from gist_jax.models.cache import AXES, KeyValue, KVCache
from gist_jax.models.config import ModelConfig
from gist_jax.models.model import DecodeState
from gist_jax.models.registry import merge
from gist_jax.models.stack import Params
from gist_jax.sharding import constrain

NOTHING = -1  # in place of a token, of rows that have ended


class Context(NamedTuple):
    """What the outputs of some rows see of their prompts: gist tokens, if any, and what followed."""

    cache: KVCache  # each layer [B, K, P, H]
    visible: jax.Array  # bool [B, P]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Slots:
    """The rows that are being written; donated from call to call."""

    context: Context  # of S slots
    ring: KVCache  # each layer [S, K, C, H]
    column: jax.Array  # int32 scalar, into which the next token of every row goes


@functools.partial(jax.jit, static_argnames=("num_slots", "context", "ring"))
def make_slots(like: Context, *, num_slots: int, context: int, ring: int) -> Slots:
    """Slots that hold nothing, for contexts like one that was read.

    Args:
      context, ring: their lengths, P and C.
    """

    def zeros(length: int) -> list[KeyValue]:
        shapes = [(num_slots, x.shape[1], length, x.shape[3]) for x in like.cache.keys]
        dtype = like.cache.keys[0].dtype
        return [(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)) for shape in shapes]

    read = Context(KVCache.of_layers(zeros(context)), jnp.zeros((num_slots, context), bool))
    return Slots(_split(read), KVCache.to_write(zeros(ring)), jnp.int32(0))


def _split(context: Context) -> Context:
    """The same, its rows split over the mesh."""
    cache = jax.tree.map(lambda x: constrain(x, *AXES), context.cache)
    return Context(cache, constrain(context.visible, "batch", "length"))


class Written(NamedTuple):
    """Where the row of every slot has come to; arrays `[S]`, made anew for every call."""

    token: Any  # int32, the last one, which is not in the ring yet
    position: Any  # int32, of that token
    count: Any  # int32, how many tokens its output has
    limit: Any  # int32, how many it may have
    live: Any  # bool, whether it goes on
    seed: Any  # uint32, of sampling
    number: Any  # int32, of the row among those of its seed


@functools.partial(jax.jit, static_argnames=("config", "condition", "gist_token", "mask"))
def read_prompts(
    params: Params,
    tokens: jax.Array,
    segment: jax.Array,
    prefixes: tuple[GistCache, ...],
    *,
    config: ModelConfig,
    condition: str,
    gist_token: int,
    mask: gist.MaskConfig = gist.PAPER_MASK,
    span: jax.Array | None = None,
    adapter: Adapter | None = None,
) -> Context:
    """Reads prompts, or what follows the gist caches in `prefixes`.

    Args:
      params, adapter: with unrolled layers (`stack.unstacked`).
      tokens: int `[B, T]`, of a decoder-only model without the last of each prompt.
      segment: int `[B, T]`, 1 for tokens and 0 for padding.
      prefixes: a bare one (`GistCache.bare`) of one row for each prompt, all with the same number of
        gist tokens; or none.
      span: int `[B, T]` of whole prompts, where it cannot be read off the tokens: see `gist.layout_of`.
    """
    model = merge(params, config, adapter)
    prefix = jax.tree.map(lambda *rows: jnp.concatenate(rows), *prefixes) if prefixes else None
    prefix = fitted(prefix, model)
    settings: dict[str, Any] = dict(condition=condition, gist_token=gist_token, mask=mask, span=span)
    _, memory, layout = run_prompt(model, tokens, segment, prefix, **settings)
    cache, seen = model.context_kv(memory), layout
    if prefix is not None:
        joined = jax.tree.map(
            lambda a, b: jnp.concatenate([a, b], axis=2), prefix.context_kv(model), cache
        )
        cache, seen = joined, gist.joined(prefix.layout, layout)
    after = gist.following(seen, jnp.ones((len(tokens), 1), jnp.int32))
    return Context(cache, gist.visible(after, seen, condition)[:, 0, 0])


@functools.partial(jax.jit, donate_argnames="slots")
def enter(slots: Slots, read: Context, rows: jax.Array) -> Slots:
    """Puts what was read of prompts into slots, int `[B]`; a slot that there is not takes nothing."""

    def put(into: jax.Array, x: jax.Array, axis: int) -> jax.Array:
        return into.at[rows].set(_fitted(x, into.shape[axis], axis), mode="drop")

    cache = jax.tree.map(lambda a, b: put(a, b, 2), slots.context.cache, read.cache)
    visible = put(slots.context.visible, read.visible, 1)
    return dataclasses.replace(slots, context=_split(Context(cache, visible)))


@functools.partial(jax.jit, static_argnames=("context", "ring"))
def resized(slots: Slots, rows: jax.Array, *, context: int, ring: int) -> Slots:
    """The rows of some slots, int `[S]`, with contexts and a ring of other lengths, P and C.

    Contexts are cut at their end; a shorter ring keeps what was written last.
    """
    before = slots.ring.num_slots

    def turned(x: jax.Array) -> jax.Array:  # what was written last comes last
        x = jnp.roll(x[rows], -slots.column, axis=2)
        return x[:, :, before - ring :] if ring < before else _fitted(x, ring, 2)

    def fitted(x: jax.Array, axis: int) -> jax.Array:
        return _fitted(x[rows], context, axis)

    cache = jax.tree.map(lambda x: fitted(x, 2), slots.context.cache)
    visible = fitted(slots.context.visible, 1)
    grown = KVCache.to_write((turned(k), turned(v)) for k, v in slots.ring.layers)
    return Slots(_split(Context(cache, visible)), grown, jnp.int32(before if ring > before else 0))


def _fitted(x: jax.Array, length: int, axis: int) -> jax.Array:
    """`x` cut, or padded with zeros, at the end of an axis."""
    x = jax.lax.slice_in_dim(x, 0, min(length, x.shape[axis]), axis=axis)
    return jnp.pad(x, [(0, length - x.shape[axis] if i == axis else 0) for i in range(x.ndim)])


@functools.partial(jax.jit, static_argnames=("config", "most"), donate_argnames="slots")
def write_tokens(
    params: Params,
    slots: Slots,
    written: Written,
    sampling: Sampling | None,
    steps: jax.Array,
    enough: jax.Array,
    eos_token: jax.Array,
    *,
    config: ModelConfig,
    most: int,
) -> tuple[Slots, jax.Array]:
    """Writes a token of every row a step, until all have ended, or enough of them.

    Args:
      params: with unrolled layers.
      sampling: arrays of `[S, 1]`; None: greedy.
      steps: int scalar, the number of steps at most; the ring must have room for what comes.
      enough: int scalar, how many rows must end until the loop does.
      eos_token: int scalar. A row ends with it.
      most: the most that `steps` may be.

    Returns:
      The slots after that, and tokens, int32 `[S, most]`, NOTHING where a row had ended.
    """
    model = merge(params, config)
    columns = slots.ring.num_slots
    keys = row_keys(written.seed, written.number)

    def unfinished(carry: tuple[Any, ...]) -> jax.Array:
        step, now = carry[0], carry[1]
        ended = jnp.sum(written.live & ~now.live)
        return (step < steps) & jnp.any(now.live) & (ended < enough)

    def body(carry: tuple[Any, ...]) -> tuple[Any, ...]:
        step, now, ring, column, tokens = carry
        state = DecodeState(ring, column, now.position[:, None])
        own = state.ages <= now.count[:, None]
        seen = jnp.concatenate([slots.context.visible, own], axis=1)[:, None, None]
        bias = gist.mask_to_bias(seen, model.embedding.dtype)
        hidden, state = model.decode_step(now.token[:, None], bias, (slots.context.cache,), state)
        step_keys = jax.vmap(jax.random.fold_in)(keys, now.count)
        token = sample(model.logits(hidden)[:, 0], step_keys, sampling)
        shown = jnp.where(now.live, token, NOTHING)
        count = now.count + now.live.astype(jnp.int32)
        now = now._replace(
            token=token,
            position=now.position + 1,
            count=count,
            live=now.live & (token != eos_token) & (count < now.limit),
        )
        tokens = jax.lax.dynamic_update_slice(tokens, shown[:, None], (0, step))
        return step + 1, now, state.cache, (column + 1) % columns, tokens

    tokens = jnp.full((len(written.token), most), NOTHING, jnp.int32)
    first = jnp.int32(0), jax.tree.map(jnp.asarray, written), slots.ring, slots.column, tokens
    _, _, ring, column, tokens = jax.lax.while_loop(unfinished, body, first)
    # Whole in every process, each of which is to know what was written.
    tokens = constrain(tokens, "length", "length")
    return dataclasses.replace(slots, ring=ring, column=column), tokens
