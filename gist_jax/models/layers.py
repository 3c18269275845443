"""Building blocks of all model families: norms, projections, embeddings, rotary positions.

Shape letters: B batch, T tokens of a row, N heads, K key/value heads, H head dim, D model dim,
F feed-forward dim, V vocabulary.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from gist_jax.models.model import Tokens
from gist_jax.sharding import constrain, platform

# Logical axes of [B, T, D] between layers, and of an embedding.
HIDDEN = ("batch", "length", "hidden")
FEW_TOKENS = 64  # up to which a CPU is faster with `transposed` kernels
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
    """A linear map of the features of every token, with a kernel of named dimensions.

    Its first `num_inputs` dimensions are summed over, as one; a bias has those that remain.
    """

    low_rank: "LowRank | None" = None  # of an adapter
    transposed: nnx.Param | None = None  # in place of the kernel

    def __init__(
        self,
        shape: Sequence[int],
        axes: Sequence[str],
        stddev: float,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
        *,
        num_inputs: int = 1,
        bias: bool = False,
    ) -> None:
        self.num_inputs, self.axes = num_inputs, tuple(axes)
        self.kernel = normal_param(rngs, shape, axes, stddev, dtype)
        outputs = slice(num_inputs, None)
        zeros = jnp.zeros(shape[outputs], dtype)
        self.bias = nnx.Param(zeros, axes=self.axes[outputs]) if bias else None

    def __call__(self, x: jax.Array, adapts: jax.Array | None = None) -> jax.Array:
        """`[B, T, outputs]` of `[B, T, inputs]`; `adapts`, bool `[B, T]`, is where an adapter acts."""
        inputs = x.reshape(*x.shape[:2], -1)
        y = self._apply_transposed(x) if self.transposed is not None else self._apply(inputs)
        if self.low_rank is not None and adapts is not None:
            adapted = self.low_rank(inputs).reshape(y.shape)
            y = jnp.where(adapts.reshape(*adapts.shape, *[1] * (y.ndim - 2)), y + adapted, y)
        return y if self.bias is None else y + self.bias.astype(x.dtype)

    def transpose(self) -> None:
        """Takes a kernel whose dimensions are in reverse order; see `matmul_transposed`."""
        self.transposed = nnx.Param(self.kernel[...].T, axes=self.axes[::-1])
        del self.kernel

    def _apply(self, inputs: jax.Array) -> jax.Array:
        # Split here too, so that its gradient is summed into parts and never whole on a device.
        kernel = constrain(self.kernel.astype(inputs.dtype), *self.axes)
        outputs = kernel.shape[self.num_inputs :]
        y = matmul_tokens(inputs, kernel.reshape(-1, math.prod(outputs)))
        return y.reshape(*inputs.shape[:2], *outputs)

    def _apply_transposed(self, x: jax.Array) -> jax.Array:
        assert self.transposed is not None
        kernel = constrain(self.transposed.astype(x.dtype), *self.axes[::-1])
        outputs = kernel.shape[: kernel.ndim - self.num_inputs]
        # Several dimensions, of inputs or outputs, stand in reverse order too.
        inputs = jnp.moveaxis(x, range(2, x.ndim), range(x.ndim - 1, 1, -1)).reshape(*x.shape[:2], -1)
        y = matmul_transposed(inputs, kernel.reshape(math.prod(outputs), -1))
        y = y.reshape(*x.shape[:2], *outputs)
        return jnp.moveaxis(y, range(2, y.ndim), range(y.ndim - 1, 1, -1))


class LowRank(nnx.Module):
    """The low-rank pair of an adapter beside a projection, or beside all of its stacked layers."""

    def __init__(self, beside: Projection, rank: int, scale: float, rngs: nnx.Rngs) -> None:
        """Makes a pair whose product is 0, as its second part is."""
        shape, dtype = beside.kernel.shape, beside.kernel.dtype
        first = len(shape) - len(beside.axes)  # 1 where layers are stacked
        cut = first + beside.num_inputs
        axes_in, axes_out = beside.axes[: beside.num_inputs], beside.axes[beside.num_inputs :]
        inputs = shape[first:cut]
        stddev = math.prod(inputs) ** -0.5
        self.scale = scale
        self.down = normal_param(rngs, (*shape[:cut], rank), (*axes_in, "rank"), stddev, dtype)
        up = jnp.zeros((*shape[:first], rank, *shape[cut:]), dtype)
        self.up = nnx.Param(up, axes=("rank", *axes_out))

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[B, T, F]` of `[B, T, D]`, all inputs and all outputs being one dimension each."""
        rank = self.down.shape[-1]
        down = self.down.astype(x.dtype).reshape(-1, rank)
        up = self.up.astype(x.dtype).reshape(rank, -1)
        return matmul_tokens(matmul_tokens(x, down), up) * self.scale


def matmul_tokens(x: jax.Array, matrix: jax.Array, **options: Any) -> jax.Array:
    """`[B, T, F]` of `[B, T, D]` and a matrix `[D, F]`; options of `jnp.matmul`.

    The tokens of all rows are one dimension: the gradient of the matrix sums over them, and XLA's CPU
    backend takes twice as long to sum over two.
    """
    return jnp.matmul(x.reshape(-1, x.shape[-1]), matrix, **options).reshape(*x.shape[:2], -1)


def matmul_transposed(x: jax.Array, matrix: jax.Array, **options: Any) -> jax.Array:
    """`[B, T, F]` of `[B, T, D]` and a matrix `[F, D]`; options of `jax.lax.dot_general`.

    For few tokens XLA's CPU backend multiplies the matrix with them, and not them with the matrix, in
    half of the time, if that is what it is told: it would exchange them by itself.
    """
    tokens, summed = x.reshape(-1, x.shape[-1]), (((1,), (1,)), ((), ()))
    if platform() == "cpu" and len(tokens) <= FEW_TOKENS:
        y = jax.lax.dot_general(matrix, tokens, summed, **options)
        y = jax.lax.optimization_barrier(y).T
    else:
        y = jax.lax.dot_general(tokens, matrix, summed, **options)
    return y.reshape(*x.shape[:2], -1)


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
        self.query = Projection((d, n, h), of_heads, of_query, dtype, rngs, bias=bias)
        self.key = Projection((d, k, h), of_kv_heads, of_key_value, dtype, rngs, bias=bias)
        self.value = Projection((d, k, h), of_kv_heads, of_key_value, dtype, rngs, bias=bias)
        out_of = "heads", "head_dim", "embed"
        self.output = Projection((n, h, d), out_of, of_output, dtype, rngs, num_inputs=2)

    def __call__(
        self, x: jax.Array, adapts: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Queries `[B, T, N, H]`, keys and values `[B, T, K, H]` of `[B, T, D]`."""
        return self.query(x, adapts), self.key(x, adapts), self.value(x, adapts)


@jax.named_scope("embedding")
def embed(embedding: nnx.Param, ids: jax.Array, dtype: DTypeLike | None = None) -> jax.Array:
    """`[B, T, D]` of token ids `[B, T]`, or of embeddings, which stay as they are."""
    if jnp.issubdtype(ids.dtype, jnp.integer):
        # Every device looks up its part of the columns for all rows that share its parts of the table;
        # then rows and columns are exchanged. XLA by itself would gather all rows everywhere.
        ids = constrain(jnp.take(embedding[...], ids, axis=0), "lookup", "length", "embed")
    return constrain(ids.astype(dtype or embedding.dtype), *HIDDEN)


def embed_tokens(model: Any, tokens: Tokens, dtype: DTypeLike | None = None) -> jax.Array:
    """`[B, T, D]` of tokens; those where the model's adapter acts, if it has one, have its embedding."""
    gist_embedding = getattr(model, "gist_embedding", None)
    if gist_embedding is None or tokens.adapts is None:
        return embed(model.embedding, tokens.ids, dtype)
    adapts, ids = tokens.adapts, tokens.ids
    if jnp.issubdtype(ids.dtype, jnp.integer):  # the base may have no entry for a gist token
        ids = jnp.where(adapts, 0, ids)
    x = embed(model.embedding, ids, dtype)
    return jnp.where(adapts[..., None], gist_embedding.astype(x.dtype), x)


@jax.named_scope("head")
def head_logits(model: Any, hidden: jax.Array) -> jax.Array:
    """float32 `[B, T, V]` from `[B, T, D]`, by the model's head or by the embedding it is tied to."""
    options = dict(preferred_element_type=jnp.float32)
    rows = model.embedding if model.config.tie_embeddings else model.head.transposed
    if rows is not None:
        matrix = constrain(rows.astype(hidden.dtype), *VOCAB)
        logits = matmul_transposed(hidden, matrix, **options)
    else:
        matrix = constrain(model.head.kernel.astype(hidden.dtype), *VOCAB[::-1])
        logits = matmul_tokens(hidden, matrix, **options)
    logits = constrain(logits, "batch", "length", "vocab")
    if (real := model.config.vocab_size) < logits.shape[-1]:  # padded, to be split over a mesh
        logits = jnp.where(jnp.arange(logits.shape[-1]) < real, logits, -jnp.inf)
    return logits


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
