"""Building blocks of all model families.

Shape letters: B batch, T query length, S key length, N heads, K key/value heads, G = N / K, H head dim,
 D model dim, F feed-forward dim, V vocabulary.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

KeyValue = tuple[jax.Array, jax.Array]  # keys and values of one layer, each [B, K, S, H]


def normal_param(rngs: nnx.Rngs, shape: Sequence[int], axes: Sequence[str], stddev: float, dtype):
    """A normally distributed parameter. `axes` names its dimensions for the sharding table."""
    values = jax.random.normal(rngs.params(), shape, jnp.float32) * stddev
    return nnx.Param(values.astype(dtype), axes=tuple(axes))


class RMSNorm(nnx.Module):
    """Root mean square norm (arXiv 1910.07467), computed in float32 whatever the dtype of `x`."""

    def __init__(self, size: int, eps: float, dtype):
        self.scale = nnx.Param(jnp.ones((size,), dtype), axes=("norm",))
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        x32 = x.astype(jnp.float32)
        x32 = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + self.eps)
        return x32.astype(x.dtype) * self.scale.astype(x.dtype)


class Projection(nnx.Module):
    """A linear map without bias, given as an einsum over the named dimensions of its kernel."""

    def __init__(self, equation: str, shape, axes, stddev: float, dtype, rngs: nnx.Rngs):
        self.equation = equation
        self.kernel = normal_param(rngs, shape, axes, stddev, dtype)

    def __call__(self, x: jax.Array) -> jax.Array:
        return jnp.einsum(self.equation, x, self.kernel.astype(x.dtype))


def rotary_angles(positions: jax.Array, head_dim: int, theta: float) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines of rotary embeddings (arXiv 2104.09864), each float32 `[B, T, 1, H/2]`."""
    exponents = jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim
    angles = positions[:, :, None, None].astype(jnp.float32) / theta**exponents
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
    implementation: str | None = None,
) -> jax.Array:
    """Attention of whole sequences with an explicit additive bias; softmax in float32.

    Args:
      q: queries `[B, T, N, H]`.
      k, v: keys and values `[B, S, K, H]`.
      bias: `[B or 1, 1 or N, T, S]`.
      implementation: of `jax.nn.dot_product_attention`: None, "xla" or "cudnn".

    Returns:
      `[B, T, N, H]` in the dtype of q.

    Raises:
      ValueError: if the shape of the bias does not fit.
    """
    _check_bias(bias, q.shape[1], k.shape[1])
    return jax.nn.dot_product_attention(q, k, v, bias=bias, implementation=implementation)


def attend_cached(q: jax.Array, blocks: Sequence[KeyValue], bias: jax.Array) -> jax.Array:
    """Attention to cached keys, one softmax over several blocks of them.

    The blocks lie as a cache keeps them, heads before slots, so that no step transposes a cache; and
    they stay apart, so that a block shared by all rows is read where it is, never copied per row.

    Args:
      q: queries `[B, T, N, H]`.
      blocks: keys and values, each `[B, K, S, H]`, or `[1, K, S, H]` for all rows.
      bias: `[B or 1, 1 or N, T, sum of S]`, in the order of the blocks.

    Returns:
      `[B, T, N, H]` in the dtype of q.

    Raises:
      ValueError: if the shape of the bias does not fit.
    """
    batch, length, num_heads, head_dim = q.shape
    num_kv_heads = blocks[0][0].shape[1]
    sizes = [keys.shape[2] for keys, _ in blocks]
    _check_bias(bias, length, sum(sizes))
    q = q.reshape(batch, length, num_kv_heads, num_heads // num_kv_heads, head_dim)

    def rows(block):  # without its dimension, the rows of a shared block fold into the queries
        shared = block.shape[0] == 1 and batch > 1
        return (block[0], "") if shared else (block, "b")

    scores = []
    for keys, _ in blocks:
        keys, b = rows(keys)
        scores.append(jnp.einsum(f"btkgh,{b}ksh->bkgts", q, keys, preferred_element_type=jnp.float32))
    # [B, 1 or N, T, S] -> [B, 1 or K, 1 or G, T, S]
    heads = (1, 1) if bias.shape[1] == 1 else q.shape[2:4]
    bias = bias.reshape(bias.shape[0], *heads, *bias.shape[2:])
    weights = jax.nn.softmax(jnp.concatenate(scores, axis=-1) * head_dim**-0.5 + bias, axis=-1)

    out, start = 0, 0
    for (_, values), size in zip(blocks, sizes, strict=True):
        values, b = rows(values)
        part = weights[..., start : start + size].astype(values.dtype)
        out += jnp.einsum(f"bkgts,{b}ksh->btkgh", part, values, preferred_element_type=jnp.float32)
        start += size
    return out.astype(q.dtype).reshape(batch, length, num_heads, head_dim)


def _check_bias(bias: jax.Array, num_queries: int, num_keys: int) -> None:
    if bias.ndim != 4 or bias.shape[-2:] != (num_queries, num_keys):
        raise ValueError(
            f"the bias must be [B, 1, T={num_queries}, S={num_keys}], but its shape is {bias.shape}"
        )
