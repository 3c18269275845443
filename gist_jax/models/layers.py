"""Building blocks of all model families.

Shape letters: B batch, T query length, S key length, P prefix length, N heads, K key/value heads,
G = N / K, H head dim, D model dim, F feed-forward dim, V vocabulary.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

KeyValue = tuple[jax.Array, jax.Array]  # keys and values of one layer, each [B, S, K, H]


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


def rotary_angles(positions: jax.Array, head_dim: int, theta: float) -> KeyValue:
    """Cosines and sines of rotary embeddings (arXiv 2104.09864), each float32 `[B, T, 1, H/2]`."""
    exponents = jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim
    angles = positions[:, :, None, None].astype(jnp.float32) / theta**exponents
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: jax.Array, angles: KeyValue) -> jax.Array:
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
    prefix: KeyValue | None = None,
    scale: float | None = None,
    implementation: str | None = None,
) -> jax.Array:
    """Attention with an explicit additive bias; softmax in float32.

    Args:
      q: queries `[B, T, N, H]`.
      k, v: keys and values `[B, S, K, H]`.
      bias: `[B, 1, T, P + S]` (or N in place of 1), the prefix's keys first.
      prefix: keys and values `[B, P, K, H]`, or `[1, P, K, H]` shared by all rows, that stand
        before k and v. They are read where they are, never copied per row.
      scale: of the scores; H ** -0.5 by default.
      implementation: of `jax.nn.dot_product_attention`: None, "xla" or "cudnn". With a prefix the
        scores of both blocks are computed apart by XLA.

    Returns:
      `[B, T, N, H]` in the dtype of q.

    Raises:
      ValueError: if the shape of the bias does not fit.
    """
    num_keys = k.shape[1] + (prefix[0].shape[1] if prefix is not None else 0)
    if bias.ndim != 4 or bias.shape[-2:] != (q.shape[1], num_keys):
        raise ValueError(
            f"the bias must be [B, 1, T={q.shape[1]}, S={num_keys}], but its shape is {bias.shape}"
        )
    if prefix is None:
        return jax.nn.dot_product_attention(
            q, k, v, bias=bias, scale=scale, implementation=implementation
        )
    return _attend_behind_prefix(q, k, v, bias, prefix, q.shape[-1] ** -0.5 if scale is None else scale)


def _attend_behind_prefix(q, k, v, bias, prefix, scale):
    """Softmax over the scores of two blocks of keys, so that a shared prefix needs no copy per row."""
    batch, length, num_heads, head_dim = q.shape
    num_kv_heads = k.shape[2]
    groups = num_heads // num_kv_heads
    q = q.reshape(batch, length, num_kv_heads, groups, head_dim)
    split = prefix[0].shape[1]
    # One prefix for many rows: drop its batch dimension, and the rows fold into the queries.
    shared = prefix[0].shape[0] == 1 and batch > 1
    pk, pv = (x[0] for x in prefix) if shared else prefix
    b = "" if shared else "b"

    def scores(equation, keys):
        return jnp.einsum(equation, q, keys, preferred_element_type=jnp.float32)

    logits = jnp.concatenate(
        [scores(f"btkgh,{b}skh->bkgts", pk), scores("btkgh,bskh->bkgts", k)], axis=-1
    )
    # [B, 1 or N, T, S] -> [B, 1 or K, 1 or G, T, S]
    heads = (1, 1) if bias.shape[1] == 1 else (num_kv_heads, groups)
    bias = bias.reshape(bias.shape[0], *heads, *bias.shape[2:])
    weights = jax.nn.softmax(logits * scale + bias.astype(jnp.float32), axis=-1).astype(v.dtype)
    out = jnp.einsum(f"bkgts,{b}skh->btkgh", weights[..., :split], pv)
    out = out + jnp.einsum("bkgts,bskh->btkgh", weights[..., split:], v)
    return out.reshape(batch, length, num_heads, head_dim)
