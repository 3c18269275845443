"""The decode loop, in one compiled program per bucket of shapes.

An output token looks at blocks of keys and values that are never joined, here of two rows:

    slots     prefix (P)    prompt (T)              output (max_new)
    row 0     g g           Input : a cup Output :  A cup . . . . .
    row 1     g -           Input : tea - Output :  Tea . . . . . .
              read only     read only               written, a slot a step, donated

`-` is padding, which no token sees. Slots are not positions: each row's tokens go on counting where its
own instruction ended. Where a prefix is of one row, all rows read that one. An encoder-decoder's prefix
and prompt are keys and values of its decoder's cross-attention.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gist_jax.gist import PAPER_MASK, MaskConfig
from gist_jax.inference.gist_cache import GistCache
from gist_jax.inference.prefill import Prefilled, decode_bias, prefill
from gist_jax.inference.sampling import Sampling, row_keys, sample
from gist_jax.models.adapter import Adapter
from gist_jax.models.config import ModelConfig
from gist_jax.models.model import DecodeState, Model
from gist_jax.models.registry import merge
from gist_jax.models.stack import Params


def decode_token(
    model: Model, prefilled: Prefilled, state: DecodeState, token: jax.Array
) -> tuple[jax.Array, DecodeState]:
    """Runs one token of every output, int `[B]`, through a model.

    Returns:
      Its hidden states `[B, 1, D]`, which predict the next, and the state after it.
    """
    bias = decode_bias(prefilled.visible, prefilled.context, state.slot, model.embedding.dtype)
    return model.decode_step(token[:, None], bias, prefilled.context, state)


def first_token(
    params: Params,
    tokens: jax.Array,
    segment: jax.Array,
    prefix: GistCache | None,
    *,
    config: ModelConfig,
    condition: str,
    gist_token: int,
    max_new: int,
) -> tuple[Prefilled, DecodeState, jax.Array]:
    """Does what `generate` does up to the first token of every output, int `[B]`; for measurements."""
    model = merge(params, config)
    settings: dict[str, Any] = dict(condition=condition, gist_token=gist_token, max_new=max_new)
    prefilled, state = prefill(model, tokens, segment, prefix, **settings)
    return prefilled, state, model.logits(prefilled.hidden).argmax(-1)[:, 0]


def next_token(
    params: Params,
    prefilled: Prefilled,
    state: DecodeState,
    token: jax.Array,
    *,
    config: ModelConfig,
) -> tuple[DecodeState, jax.Array]:
    """Does one step of `generate`, greedily; for measurements. Donate the state.

    Args:
      token: int `[B]`, the last of every output.

    Returns:
      The state after it, and the next token, int `[B]`.
    """
    model = merge(params, config)
    hidden, state = decode_token(model, prefilled, state, token)
    return state, model.logits(hidden).argmax(-1)[:, 0]


class _Loop(NamedTuple):
    """What the loop of `generate` carries from step to step."""

    step: jax.Array  # int32 scalar: tokens chosen so far
    token: jax.Array  # int32 [B], the last one chosen
    state: DecodeState
    output: jax.Array  # int32 [B, max_new]
    done: jax.Array  # bool [B]


@functools.partial(jax.jit, static_argnames=("config", "condition", "gist_token", "max_new", "mask"))
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
    adapter: Adapter | None = None,
    mask: MaskConfig = PAPER_MASK,
    span: jax.Array | None = None,
) -> jax.Array:
    """Generates an output for every row of a ragged batch.

    Args:
      params: with unrolled layers (`stack.unstacked`).
      tokens: int `[B, T]`: whole prompts, or what follows the compressed instruction in `prefix`.
      segment: int `[B, T]`, 1 for tokens and 0 for padding, which may stand at either end. Nothing is
        generated for a row of padding alone.
      prefix: of batch B, or of batch 1 for all rows; without what it was made of (`GistCache.bare`),
        for which there would be a program of its own.
      limit: int scalar, stop after so many new tokens.
      eos_token: int scalar. A row ends with it.
      sampling: None is greedy.
      max_new: the most that `limit` may be; the size of the cache depends on it.
      adapter: with unrolled layers, acts at the gist tokens of whole prompts.
      mask: of the model, for whole prompts.
      span: int `[B, T]` of whole prompts, where it cannot be read off the tokens: see `gist.layout_of`.

    Returns:
      int32 `[B, max_new]`; after its end of sequence a row is filled with eos_token.
    """
    batch = tokens.shape[0]
    model = merge(params, config)
    settings: dict[str, Any] = dict(condition=condition, gist_token=gist_token, max_new=max_new)
    adapted = merge(params, config, adapter)
    prefilled, state = prefill(adapted, tokens, segment, prefix, mask=mask, span=span, **settings)

    of_rows = row_keys(jnp.broadcast_to(seed, batch), jnp.arange(batch))

    def choose(hidden: jax.Array, step: jax.Array | int) -> jax.Array:
        keys = jax.vmap(lambda key: jax.random.fold_in(key, step))(of_rows)
        return sample(model.logits(hidden)[:, 0], keys, sampling)

    def append(loop: _Loop, token: jax.Array) -> _Loop:
        token = jnp.where(loop.done, eos_token, token)
        output = jax.lax.dynamic_update_slice(loop.output, token[:, None], (0, loop.step))
        return _Loop(loop.step + 1, token, loop.state, output, loop.done | (token == eos_token))

    def unfinished(loop: _Loop) -> jax.Array:
        return (loop.step < limit) & ~jnp.all(loop.done)

    def body(loop: _Loop) -> _Loop:
        # The last token is not in the cache yet.
        hidden, state = decode_token(model, prefilled, loop.state, loop.token)
        return append(loop._replace(state=state), choose(hidden, loop.step))

    output = jnp.full((batch, max_new), eos_token, jnp.int32)
    nothing_to_read = jnp.all(segment == 0, axis=1)
    loop = _Loop(jnp.int32(0), output[:, 0], state, output, nothing_to_read)
    loop = append(loop, choose(prefilled.hidden, 0))
    return jax.lax.while_loop(unfinished, body, loop).output
