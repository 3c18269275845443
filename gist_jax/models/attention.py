"""Attention with explicit additive biases: of whole sequences, and to cached keys and values.

Shape letters: B batch, T query length, S key length, N heads, K key/value heads, G = N / K, H head dim.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from gist_jax.models.cache import KeyValue
from gist_jax.models.dropout import Dropout
from gist_jax.sharding import platform

# Queries, keys and values of new tokens -> what they attend to, and what is kept of them.
Attend = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, Any]]
# Of whole sequences: ours, by blocks of queries, or one of `jax.nn.dot_product_attention`.
Implementation = Literal["blocks", "xla", "cudnn"]
IMPLEMENTATIONS = ("blocks", "xla", "cudnn")
# Name under which a layer's attention can be kept for the backward pass where it was made in blocks.
ATTENDED = "attended"


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    bias: jax.Array,
    *,
    scale: float | None = None,
    causal: bool = False,
    implementation: Implementation = "blocks",
    dropout: Dropout | None = None,
) -> jax.Array:
    """Attention of whole sequences with an explicit additive bias; softmax in float32.

    Args:
      q: queries `[B, T, N, H]`.
      k, v: keys and values `[B, S, K, H]`.
      bias: `[B or 1, 1 or N, T, S]`.
      scale: of the logits; `H**-0.5` by default.
      causal: the bias hides all keys in slots behind the query's own, so that they may be left out.
      implementation: "blocks" never holds logits `[B, N, T, S]` of long rows; "xla" and "cudnn" are
        those of `jax.nn.dot_product_attention`.
      dropout: of the attention weights; `implementation` does not matter then.

    Returns:
      `[B, T, N, H]` in the dtype of q.

    Raises:
      ValueError: if the shape of the bias does not fit.
    """
    _check_bias(bias, q.shape[1], k.shape[1])
    if dropout is not None:
        return attend_cached(q, [heads_first(k, v)], bias, scale=scale, dropout=dropout)
    if implementation != "blocks":
        attention = jax.nn.dot_product_attention
        return attention(q, k, v, bias=bias, scale=scale, implementation=implementation)
    length, (k, v) = q.shape[1], heads_first(k, v)
    q, scale = _group_heads(q, k.shape[1]), q.shape[-1] ** -0.5 if scale is None else scale
    attend_block: Callable[..., jax.Array] = functools.partial(_attend_queries, scale=scale)
    size = _block_size(length, causal)
    if size < length:  # then logits are made again in the backward pass, and not kept
        attend_block = jax.checkpoint(attend_block)
    parts = []
    for start in range(0, length, size):
        stop = min(start + size, length)
        last = stop if causal else k.shape[2]
        rows = bias[:, :, start:stop, :last]
        parts.append(attend_block(q[:, :, :, start:stop], k[:, :, :last], v[:, :, :last], rows))
    out = parts[0]
    if len(parts) > 1:
        out = checkpoint_name(jnp.concatenate(parts, axis=3), ATTENDED)
    return _ungroup_heads(out)


def _block_size(length: int, causal: bool) -> int:
    """How many queries attend at a time.

    On a CPU small blocks are faster where they let keys be left out. There are 16 blocks at most,
    because programs grow with them.
    """
    return max(128 if causal and platform() == "cpu" else 512, -(-length // 16))


def _attend_queries(
    q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array, *, scale: float
) -> jax.Array:
    """Attention `[B, K, G, T, H]` of queries of that shape to keys and values `[B, K, S, H]`.

    Args:
      bias: `[B or 1, 1 or N, T, S]`.
    """
    # Else the gradient would multiply float32 with bfloat16: https://github.com/jax-ml/jax/issues/24047.
    rounded = q.dtype == jnp.bfloat16
    options: dict[str, Any] = dict(
        precision=jax.lax.DotAlgorithmPreset.BF16_BF16_F32 if rounded else None,
        preferred_element_type=jnp.float32,
    )
    logits = jnp.einsum("bkgth,bksh->bkgts", q, k, **options) * scale + _grouped(bias, q)
    # Divided by their sum after the matmul: there are fewer outputs than weights, in the gradient too.
    weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(-1, keepdims=True)))
    total = weights.sum(-1, keepdims=True)
    out = jnp.einsum("bkgts,bksh->bkgth", weights.astype(v.dtype), v, **options)
    return (out / total).astype(q.dtype)


def _group_heads(q: jax.Array, num_kv_heads: int) -> jax.Array:
    """Queries `[B, T, N, H]` by the key/value head that they attend with: `[B, K, G, T, H]`."""
    batch, length, _, head_dim = q.shape
    return q.reshape(batch, length, num_kv_heads, -1, head_dim).transpose(0, 2, 3, 1, 4)


def _ungroup_heads(x: jax.Array) -> jax.Array:
    """`[B, T, N, H]` of `[B, K, G, T, H]`."""
    batch, _, _, length, head_dim = x.shape
    return x.transpose(0, 3, 1, 2, 4).reshape(batch, length, -1, head_dim)


def _grouped(bias: jax.Array, q: jax.Array) -> jax.Array:
    """The bias of queries `[B, K, G, T, H]`: float32 `[B, 1 or K, 1 or G, T, S]`."""
    heads = (1, 1) if bias.shape[1] == 1 else q.shape[1:3]
    return bias.reshape(bias.shape[0], *heads, *bias.shape[2:]).astype(jnp.float32)


def heads_first(k: jax.Array, v: jax.Array) -> KeyValue:
    """Keys and values as a cache keeps them, `[B, K, S, H]`, of `[B, S, K, H]`."""
    return k.swapaxes(1, 2), v.swapaxes(1, 2)


def attend_after(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    bias: jax.Array,
    before: Sequence[KeyValue],
    scale: float | None = None,
) -> tuple[jax.Array, KeyValue]:
    """Attention of a prompt's tokens to those before them and to one another.

    Args:
      q: of the T new tokens, or of some of them, `[B, Q, N, H]`.
      k, v: of all new tokens, `[B, T, K, H]`.
      bias: `[B or 1, 1 or N, Q, P + T]`, over `before`, then the new tokens.
      before: read-only blocks of keys and values, `[B or 1, K, S, H]`, of P slots in all.

    Returns:
      `[B, Q, N, H]`, and the keys and values of the new tokens, `[B, K, T, H]`.
    """
    new = heads_first(k, v)
    if not before and q.shape[1] == k.shape[1]:
        return attend(q, k, v, bias, scale=scale), new
    return attend_cached(q, [*before, new], bias, scale=scale), new


def attend_cached(
    q: jax.Array,
    blocks: Sequence[KeyValue],
    bias: jax.Array,
    *,
    scale: float | None = None,
    dropout: Dropout | None = None,
) -> jax.Array:
    """Attention to cached keys and values, one softmax over several blocks of them.

    The blocks lie as a cache keeps them, heads before slots, so that no step transposes a cache; and
    they are never joined, so that a block shared by all rows is read where it is, not copied per row.

    Args:
      q: queries `[B, T, N, H]`.
      blocks: keys and values, each `[B, K, S, H]`, or `[1, K, S, H]` for all rows.
      bias: `[B or 1, 1 or N, T, sum of S]`, in the order of the blocks.
      scale: of the logits; `H**-0.5` by default.

    Returns:
      `[B, T, N, H]` in the dtype of q.

    Raises:
      ValueError: if the shape of the bias does not fit.
    """
    sizes = [keys.shape[2] for keys, _ in blocks]
    _check_bias(bias, q.shape[1], sum(sizes))
    q = _group_heads(q, blocks[0][0].shape[1])
    logits = jnp.concatenate([_with_block("h", q, keys) for keys, _ in blocks], axis=-1)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    weights = jax.nn.softmax(logits * scale + _grouped(bias, q), axis=-1)
    if dropout is not None:
        weights = dropout(weights)

    parts, start = [], 0
    for (_, values), size in zip(blocks, sizes, strict=True):
        part = weights[..., start : start + size].astype(values.dtype)
        parts.append(_with_block("s", part, values))
        start += size
    return _ungroup_heads(sum(parts[1:], start=parts[0]).astype(q.dtype))


def _with_block(summed: str, x: jax.Array, block: jax.Array) -> jax.Array:
    """The matmul of `[B, K, G, T, H or S]` with a block, summed over "h" or "s".

    The dimensions stand so that XLA need not transpose a block, which it would do at every step.
    """
    kept = {"h": "s", "s": "h"}[summed]
    batch, heads, *queries, _ = x.shape
    if len(block) == batch > 1:
        return _accumulated(f"bkgt{summed},bksh->bkgt{kept}", x, block)
    # The rows of a shared block are queries of one and the same.
    x = x.swapaxes(0, 1).reshape(heads, -1, x.shape[-1])
    x = _accumulated(f"km{summed},ksh->km{kept}", x, block.reshape(block.shape[1:]))
    return x.reshape(heads, batch, *queries, -1).swapaxes(0, 1)


def _accumulated(equation: str, a: jax.Array, b: jax.Array) -> jax.Array:
    """An einsum accumulated in float32."""

    def accumulated(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.einsum(equation, a, b, preferred_element_type=jnp.float32)

    # XLA's CPU backend has no such matmul of bfloat16 for every shape.
    def widened(a: jax.Array, b: jax.Array) -> jax.Array:
        return accumulated(a.astype(jnp.float32), b.astype(jnp.float32))

    if a.dtype == jnp.float32:
        return accumulated(a, b)
    return jax.lax.platform_dependent(a, b, cpu=widened, default=accumulated)


def _check_bias(bias: jax.Array, num_queries: int, num_keys: int) -> None:
    if bias.ndim != 4 or bias.shape[-2:] != (num_queries, num_keys):
        raise ValueError(
            f"the bias must be [B, 1, T={num_queries}, S={num_keys}], but its shape is {bias.shape}"
        )
