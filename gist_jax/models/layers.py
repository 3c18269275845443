"""Building blocks of all model families.

Shape letters: B batch, T query length, S key length, N heads, K key/value heads, G = N / K, H head dim,
 D model dim, F feed-forward dim, V vocabulary.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from gist_jax.models.cache import KeyValue
from gist_jax.models.dropout import Dropout
from gist_jax.sharding import constrain

# Queries, keys and values of new tokens -> what they attend to, and what is kept of them.
Attend = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, Any]]
# Implementations of `jax.nn.dot_product_attention`; None lets JAX choose.
Implementation = Literal["xla", "cudnn"] | None
# Logical axes of [B, T, D] between layers, and of an embedding.
HIDDEN = ("batch", "length", "hidden")
VOCAB = ("vocab", "embed")


def normal_param(
    rngs: nnx.Rngs, shape: Sequence[int], axes: Sequence[str], stddev: float, dtype: DTypeLike
) -> nnx.Param:
    """A normally distributed parameter. `axes` names its dimensions for the sharding table."""
    values = jax.random.normal(rngs.params(), shape, jnp.float32) * stddev
    return nnx.Param(values.astype(dtype), axes=tuple(axes))


class RMSNorm(nnx.Module):
    """Root mean square norm (arXiv 1910.07467), computed in float32 whatever the dtype of `x`."""

    def __init__(self, size: int, eps: float, dtype: DTypeLike) -> None:
        self.scale = nnx.Param(jnp.ones((size,), dtype), axes=("norm",))
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        x32 = x.astype(jnp.float32)
        x32 = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + self.eps)
        return x32.astype(x.dtype) * self.scale.astype(x.dtype)


class Projection(nnx.Module):
    """A linear map, given as an einsum over the named dimensions of its kernel.

    A bias has the dimensions of the kernel after the first. Heads that are summed over count as one
    dimension with theirs: of two XLA might choose another order, and copy the kernel for it.
    """

    def __init__(
        self,
        equation: str,
        shape: Sequence[int],
        axes: Sequence[str],
        stddev: float,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
        bias: bool = False,
    ) -> None:
        self.equation, self.axes = equation, tuple(axes)
        self.kernel = normal_param(rngs, shape, axes, stddev, dtype)
        self.bias = nnx.Param(jnp.zeros(shape[1:], dtype), axes=tuple(axes[1:])) if bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        # Split here too, so that its gradient is summed into parts and never whole on a device.
        kernel = constrain(self.kernel.astype(x.dtype), *self.axes)
        if x.ndim == 4:
            x, kernel = x.reshape(*x.shape[:2], -1), kernel.reshape(-1, kernel.shape[-1])
        x = jnp.einsum(self.equation, x, kernel)
        return x if self.bias is None else x + self.bias.astype(x.dtype)


class Attention(nnx.Module):
    """The projections of attention."""

    def __init__(
        self,
        sizes: tuple[int, int, int, int],
        stddevs: tuple[float, float, float],
        dtype: DTypeLike,
        rngs: nnx.Rngs,
        bias: bool = False,
    ) -> None:
        """`sizes` are D, N, K, H; `stddevs` those of the query, of key and value, of the output.

        `bias` is of queries, keys and values.
        """
        d, n, k, h = sizes
        of_query, of_key_value, of_output = stddevs
        of_heads, of_kv_heads = ("embed", "heads", "head_dim"), ("embed", "kv_heads", "head_dim")
        key_value = "btd,dkh->btkh", (d, k, h), of_kv_heads, of_key_value, dtype, rngs, bias
        self.query = Projection("btd,dnh->btnh", (d, n, h), of_heads, of_query, dtype, rngs, bias)
        self.key, self.value = Projection(*key_value), Projection(*key_value)
        out_of = "heads", "head_dim", "embed"
        self.output = Projection("btf,fd->btd", (n, h, d), out_of, of_output, dtype, rngs)

    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Queries `[B, T, N, H]`, keys and values `[B, T, K, H]` of `[B, T, D]`."""
        return self.query(x), self.key(x), self.value(x)


@jax.named_scope("embedding")
def embed(embedding: nnx.Param, ids: jax.Array, dtype: DTypeLike | None = None) -> jax.Array:
    """`[B, T, D]` of token ids `[B, T]`, or of embeddings, which stay as they are."""
    if jnp.issubdtype(ids.dtype, jnp.integer):
        # Every device looks up its part of the columns for all rows that share its parts of the table;
        # then rows and columns are exchanged. XLA by itself would gather all rows everywhere.
        ids = constrain(jnp.take(embedding[...], ids, axis=0), "lookup", "length", "embed")
    return constrain(ids.astype(dtype or embedding.dtype), *HIDDEN)


@jax.named_scope("head")
def head_logits(model: Any, hidden: jax.Array) -> jax.Array:
    """float32 `[B, T, V]` from `[B, T, D]`, by the model's head or by the embedding it is tied to."""
    tied = model.config.tie_embeddings
    kernel = model.embedding if tied else model.head.kernel
    equation = "btd,vd->btv" if tied else "btd,dv->btv"
    kernel = constrain(kernel.astype(hidden.dtype), *(VOCAB if tied else VOCAB[::-1]))
    logits = jnp.einsum(equation, hidden, kernel, preferred_element_type=jnp.float32)
    return constrain(logits, "batch", "length", "vocab")


def rotary_angles(positions: jax.Array, frequencies: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines of rotary embeddings (arXiv 2104.09864), each float32 `[B, T, 1, H/2]`.

    Args:
      positions: int `[B, T]`.
      frequencies: float32 `[H/2]`, in radians per position.
    """
    angles = positions[:, :, None, None].astype(jnp.float32) * frequencies
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: jax.Array, angles: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotates `[B, T, N, H]` by its positions. Dimension i is paired with i + H/2, as in HF LLaMA."""
    cos, sin = angles
    x1, x2 = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([x1 * cos - x2 * sin, x2 * cos + x1 * sin], axis=-1).astype(x.dtype)


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    bias: jax.Array,
    *,
    scale: float | None = None,
    implementation: Implementation = None,
    dropout: Dropout | None = None,
) -> jax.Array:
    """Attention of whole sequences with an explicit additive bias; softmax in float32.

    Args:
      q: queries `[B, T, N, H]`.
      k, v: keys and values `[B, S, K, H]`.
      bias: `[B or 1, 1 or N, T, S]`.
      scale: of the logits; `H**-0.5` by default.
      implementation: of `jax.nn.dot_product_attention`: None, "xla" or "cudnn". It has no dropout.
      dropout: of the attention weights.

    Returns:
      `[B, T, N, H]` in the dtype of q.

    Raises:
      ValueError: if the shape of the bias does not fit.
    """
    _check_bias(bias, q.shape[1], k.shape[1])
    if dropout is None:
        attention = jax.nn.dot_product_attention
        return attention(q, k, v, bias=bias, scale=scale, implementation=implementation)
    return attend_blocks(q, [heads_first(k, v)], bias, scale=scale, dropout=dropout)


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
      q, k, v: of the T new tokens, `[B, T, N or K, H]`.
      bias: `[B or 1, 1 or N, T, P + T]`, over `before`, then the new tokens.
      before: read-only blocks of keys and values, `[B or 1, K, S, H]`, of P slots in all.

    Returns:
      `[B, T, N, H]`, and the keys and values of the new tokens, `[B, K, T, H]`.
    """
    new = heads_first(k, v)
    if not before:
        return attend(q, k, v, bias, scale=scale), new
    return attend_blocks(q, [*before, new], bias, scale=scale), new


def attend_blocks(
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
    batch, length, num_heads, head_dim = q.shape
    num_kv_heads = blocks[0][0].shape[1]
    sizes = [keys.shape[2] for keys, _ in blocks]
    _check_bias(bias, length, sum(sizes))
    # [B, T, N, H] -> [B, K, G, T, H]
    q = q.reshape(batch, length, num_kv_heads, num_heads // num_kv_heads, head_dim)
    q = q.transpose(0, 2, 3, 1, 4)
    logits = jnp.concatenate([_with_block("h", q, keys) for keys, _ in blocks], axis=-1)
    # [B, 1 or N, T, S] -> [B, 1 or K, 1 or G, T, S]
    heads = (1, 1) if bias.shape[1] == 1 else q.shape[1:3]
    bias = bias.reshape(bias.shape[0], *heads, *bias.shape[2:])
    scale = head_dim**-0.5 if scale is None else scale
    weights = jax.nn.softmax(logits * scale + bias.astype(logits.dtype), axis=-1)
    if dropout is not None:
        weights = dropout(weights)

    parts, start = [], 0
    for (_, values), size in zip(blocks, sizes, strict=True):
        part = weights[..., start : start + size].astype(values.dtype)
        parts.append(_with_block("s", part, values))
        start += size
    out = sum(parts[1:], start=parts[0]).astype(q.dtype)
    return out.transpose(0, 3, 1, 2, 4).reshape(batch, length, num_heads, head_dim)


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
